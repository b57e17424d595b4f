// What goes over an image in windows: convolutions' patches and bands, depthwise convolutions, pools.
#include <algorithm>
#include <string>
#include <vector>

#include "epilogue_case.h"
#include "image.h"
#include "reference.h"
#include "tests.h"

namespace jaxq::test {

void test_patches() {
  Image image(between(1, 4), between(1, 4), false);
  const int64_t first_channel = between(0, image.w.channels - 1), channels = between(1, image.w.channels - first_channel);
  const int64_t run = image.w.kernel_w * channels, k = depth_of(image.w.kernel_h, run), lda = k + (chance(0.5) ? between(0, 9) : 0);
  const uint8_t flip = chance(0.5) ? 0x80 : 0;
  const int64_t first = between(0, image.rows() - 1), last = between(first + 1, image.rows());
  Buffer<uint8_t> out((last - first - 1) * lda + k);
  fill_random(out.bytes(), out.size);
  Bytes expected(out.memory, out.memory + out.size);
  kernels->patches({&image.w, first_channel, channels, flip, out.memory, lda}, first, last);
  for (int64_t row = first; row < last; ++row) {
    for (int64_t i = 0; i < k; ++i) {
      if (i % round_up(run, 4) >= run) expected[static_cast<size_t>((row - first) * lda + i)] = 0;
    }
    image.taps(row, [&](int64_t i, int64_t j, const uint8_t* pixel) {
      uint8_t* to = expected.data() + (row - first) * lda + i * round_up(run, 4) + j * channels;
      for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<uint8_t>((pixel ? pixel[first_channel + c] : 0) ^ flip);
    });
  }
  check(same(expected, out), "patches" + image.describe());
}

void test_band() {
  const Image image(between(1, 3), between(1, 3), false);
  const Window& w = image.w;
  const int64_t first_channel = between(0, w.channels - 1), channels = between(1, w.channels - first_channel);
  const int64_t left = chance(0.3) ? 0 : between(0, 9) - 5, columns = left == 0 && chance(0.5) ? w.width : between(1, w.width + 9);
  const int64_t first = chance(0.3) ? 0 : between(0, w.height + 5) - 5, last = first + between(1, w.height + 5);
  const int64_t number = between(0, image.images - 1);
  const uint8_t flip = chance(0.5) ? 0x80 : 0;
  Buffer<uint8_t> out((last - first) * columns * channels);
  fill_random(out.bytes(), out.size);
  Bytes expected;
  for (int64_t y = first; y < last; ++y) {
    for (int64_t x = left; x < left + columns; ++x) {
      const bool inside = y >= 0 && y < w.height && x >= 0 && x < w.width;
      for (int64_t c = first_channel; c < first_channel + channels; ++c) {
        const uint8_t byte = inside ? w.x[((number * w.height + y) * w.width + x) * w.stride + c] : 0;
        expected.push_back(static_cast<uint8_t>(byte ^ flip));
      }
    }
  }
  kernels->band({&w, first_channel, channels, flip, out.memory, left, columns}, number, first, last);
  check(same(expected, out), "band" + image.describe());
}

void test_depthwise() {
  const int64_t kernel = one_of<int64_t>({3, 3, 5, 5, 7});
  const bool square = chance(0.7);
  const bool large = chance(0.03);
  Image image(large ? between(1, 70) : square ? kernel : between(1, 9), large ? between(1, 70) : square ? kernel : between(1, 9), false);
  const Window& w = image.w;
  Buffer<uint8_t> weight(w.kernel_h * w.kernel_w * w.channels), packed(depthwise_size(w.kernel_h, w.kernel_w, w.channels));
  fill_random(weight.bytes(), weight.size);
  kernels->pack_depthwise(reinterpret_cast<const int8_t*>(weight.memory), w.kernel_h, w.kernel_w, w.channels, packed.memory);
  EpilogueCase c(image.rows(), w.channels, 127.0f * 127.0f * static_cast<float>(w.kernel_h * w.kernel_w));
  in_parts(image.lines(), [&](int64_t first, int64_t last) { kernels->depthwise(w, packed.memory, c.e, first, last); });
  std::vector<int32_t> acc(static_cast<size_t>(w.channels));
  for (int64_t row = 0; row < image.rows(); ++row) {
    std::fill(acc.begin(), acc.end(), 0);
    image.taps(row, [&](int64_t i, int64_t j, const uint8_t* pixel) {
      for (int64_t k = 0; pixel && k < w.channels; ++k) {
        acc[static_cast<size_t>(k)] +=
            value(pixel + k, w.dtype) * value(&weight[(i * w.kernel_w + j) * w.channels + k], DType::s8);
      }
    });
    for (int64_t k = 0; k < w.channels; ++k) c.expect(row, k, acc[static_cast<size_t>(k)]);
  }
  check(c.right(), "depthwise" + image.describe() + c.describe());
}

namespace {

// Does every window touch the image?
bool touches(const Image& image) {
  for (int64_t row = 0; row < image.rows(); ++row) {
    bool inside = false;
    image.taps(row, [&](int64_t, int64_t, const uint8_t* pixel) { inside |= pixel != nullptr; });
    if (!inside) return false;
  }
  return true;
}

}  // namespace

void test_max_pool() {
  Image image(chance(0.4) ? 3 : between(1, 6), chance(0.4) ? 3 : between(1, 6), true);
  if (!touches(image)) return;
  const Window& w = image.w;
  const int64_t stride = w.channels + (chance(0.3) ? between(0, 9) : 0);
  Buffer<uint8_t> out((image.rows() - 1) * stride + w.channels);
  fill_random(out.bytes(), out.size);
  Bytes expected(out.memory, out.memory + out.size);
  in_parts(image.lines(), [&](int64_t first, int64_t last) { kernels->max_pool(w, out.memory, stride, first, last); });
  for (int64_t row = 0; row < image.rows(); ++row) {
    for (int64_t c = 0; c < w.channels; ++c) {
      int32_t most = -1000;
      image.taps(row, [&](int64_t, int64_t, const uint8_t* pixel) {
        if (pixel) most = std::max(most, value(pixel + c, w.dtype));
      });
      expected[static_cast<size_t>(row * stride + c)] = static_cast<uint8_t>(most);
    }
  }
  check(same(expected, out), "max_pool" + image.describe());
}

void test_sum_pool() {
  Image image(chance(0.4) ? 3 : between(1, 12), chance(0.4) ? 3 : between(1, 12), false);
  const Window& w = image.w;
  EpilogueCase c(image.rows(), w.channels, 127.0f * static_cast<float>(w.kernel_h * w.kernel_w));
  in_parts(image.lines(), [&](int64_t first, int64_t last) { kernels->sum_pool(w, c.e, first, last); });
  for (int64_t row = 0; row < image.rows(); ++row) {
    for (int64_t k = 0; k < w.channels; ++k) {
      int32_t acc = 0;
      image.taps(row, [&](int64_t, int64_t, const uint8_t* pixel) { acc += pixel ? value(pixel + k, w.dtype) : 0; });
      c.expect(row, k, acc);
    }
  }
  check(c.right(), "sum_pool" + image.describe() + c.describe());
}

}  // namespace jaxq::test
