// Every kernel of every instruction set that this machine has against its plain definition, on random sizes in buffers
// of exactly their size; and the bytes of exact kernels against those of the other instruction sets.
//
// test_kernels.py says how it is built. It prints "NAME: N passed, N failed" for each, and fails if one did. Arguments:
// names of instruction sets (otherwise: all), a number (the seed), --bench [NAME] (timings, of what contains NAME,
// instead); ROUNDS in the environment.
#include <algorithm>
#include <array>
#include <cctype>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "machine.h"

namespace jaxq {

namespace {

const Kernels* kernels = nullptr;  // under test
std::mt19937_64 generator(1);
int passed = 0, failed = 0;

int64_t between(int64_t lo, int64_t hi) { return std::uniform_int_distribution<int64_t>(lo, hi)(generator); }
bool chance(double p) { return std::uniform_real_distribution<>(0, 1)(generator) < p; }
float uniform(float lo, float hi) { return std::uniform_real_distribution<float>(lo, hi)(generator); }
template <class T>
T one_of(std::initializer_list<T> values) {
  return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
}
// Mostly sizes about the widths of vectors.
int64_t some_channels() {
  return chance(0.5) ? between(1, 70) : one_of<int64_t>({16, 24, 32, 48, 64, 96, 112, 128, 129, 144, 200});
}

using Bytes = std::vector<uint8_t>;

// A buffer of its size exactly, at an odd address, so that a sanitizer sees what is read or written beyond it.
template <class T>
struct Buffer {
  explicit Buffer(int64_t n) : memory(new T[static_cast<size_t>(n)]), size(n) {}
  ~Buffer() { delete[] memory; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T& operator[](int64_t i) { return memory[i]; }
  const T& operator[](int64_t i) const { return memory[i]; }
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(memory); }
  T* memory;
  int64_t size;
};

// Of all that kernels wrote whose bytes are defined.
uint64_t digest = 0;

bool same(const Bytes& expected, const Buffer<uint8_t>& out) {
  for (int64_t i = 0; i < out.size; ++i) digest = (digest ^ out[i]) * 0x100000001B3u;
  return std::memcmp(expected.data(), out.memory, expected.size()) == 0;
}

void fill_random(uint8_t* p, int64_t n) {
  const bool extreme = chance(0.2);
  for (int64_t i = 0; i < n; ++i) {
    p[i] = static_cast<uint8_t>(extreme ? one_of<int>({0x7F, 0x80, 0x81, 0xFF, 0x00}) : between(0, 255));
  }
}
void fill_random(float* p, int64_t n, float scale) {
  std::normal_distribution<float> normal(0, scale);
  for (int64_t i = 0; i < n; ++i) p[i] = normal(generator);
}

int32_t value(const uint8_t* p, DType dtype) {
  return dtype == DType::s8 ? static_cast<int32_t>(static_cast<int8_t>(*p)) : static_cast<int32_t>(*p);
}
DType some_bytes() { return one_of({DType::s8, DType::u8}); }

float times(volatile float a, volatile float b) {
  volatile float product = a * b;
  return product;
}

// numerics.epilogue of one value.
uint8_t byte_of(float y, bool is_signed) {
  const int32_t q = static_cast<int32_t>(std::nearbyint(y));
  return is_signed ? static_cast<uint8_t>(static_cast<int8_t>(q)) : static_cast<uint8_t>(q);
}

// A random epilogue for `rows` x `channels`, its vectors, its residual and its output.
struct Case {
  // `may_be_by_row`: its rows may have scales of their own, as those of a matrix product.
  Case(int64_t rows, int64_t channels, float largest, bool may_be_by_row = false)
      : rows(rows),
        channels(channels),
        multiplier(channels),
        bias(channels),
        lo(channels),
        hi(channels),
        row_scale(rows),
        table(256),
        repeat(chance(0.2) ? between(1, 3) : 1),
        period(chance(0.2) ? between(1, std::max<int64_t>(1, (rows + repeat - 1) / repeat)) : (rows + repeat - 1) / repeat),
        step(chance(0.2) ? 0 : 1),
        residual_dtype(one_of({DType::s8, DType::u8, DType::f32})),
        residual_stride(size_of(residual_dtype) * ((step ? channels : 1) + between(0, 1) * between(0, 9))),
        residual(period * residual_stride),
        out_dtype(one_of({DType::s8, DType::s8, DType::u8, DType::u8, DType::f32})),
        out_stride((channels + (chance(0.3) ? between(0, 9) : 0)) * size_of(out_dtype)),
        out(rows * out_stride) {
    const bool has_table = out_dtype != DType::f32 && chance(0.3);
    const bool has_residual = chance(0.4);
    const bool is_signed = has_table || out_dtype == DType::s8;
    const float least = out_dtype == DType::f32 ? -1e30f : is_signed ? -127.0f : 0.0f;
    const float most = out_dtype == DType::f32 ? 1e30f : is_signed ? 127.0f : 255.0f;
    const float scale = (chance(0.1) ? 1e8f : chance(0.5) ? 200.0f : 2000.0f) / largest;
    for (int64_t c = 0; c < channels; ++c) {
      multiplier[c] = scale * uniform(chance(0.1) ? -1.0f : 0.01f, 1.0f);
      if (chance(0.2)) multiplier[c] = std::exp2(std::round(std::log2(std::fabs(multiplier[c]) + 1e-9f)));  // ties
      bias[c] = chance(0.3) ? 0.0f : chance(0.5) ? uniform(-100, 100) : std::round(uniform(-100, 100)) + 0.5f;
      lo[c] = chance(0.5) ? least : is_signed ? std::round(uniform(-127, 0)) : std::round(uniform(0, 20));
      hi[c] = chance(0.5) ? most : std::round(uniform(20, 127));
      if (chance(0.1) && least < 0) lo[c] = 0;
    }
    const bool by_row = may_be_by_row && chance(0.3);
    for (int64_t r = 0; r < rows; ++r) row_scale[r] = chance(0.05) ? 1e36f : std::exp(uniform(-2, 2));
    fill_random(table.bytes(), 256);
    if (residual_dtype == DType::f32) {
      for (int64_t i = 0; i < period * residual_stride / 4; ++i) {
        const float x = uniform(-100, 100);
        std::memcpy(residual.bytes() + i * 4, &x, 4);
      }
    } else {
      fill_random(residual.bytes(), residual.size);
    }
    fill_random(out.bytes(), out.size);
    before.assign(out.memory, out.memory + out.size);
    e = {multiplier.memory,
         bias.memory,
         lo.memory,
         hi.memory,
         by_row ? row_scale.memory : nullptr,
         has_table ? table.memory : nullptr,
         has_residual ? residual.memory : nullptr,
         residual_dtype,
         residual_stride,
         repeat,
         period,
         step,
         uniform(0.01f, 2.0f),
         out.memory,
         out_dtype,
         out_stride};
  }

  void expect(int64_t row, int64_t c, int32_t acc) {
    float y = times(static_cast<float>(acc), multiplier[c]);
    if (e.row_scale) y = std::min(std::max(times(y, row_scale[row]), -FLT_MAX), FLT_MAX);
    y = y + bias[c];
    if (e.residual) {
      const uint8_t* p = e.residual + row / e.residual_repeat % e.residual_period * e.residual_stride;
      p += e.residual_step ? c * size_of(residual_dtype) : 0;
      float x;
      if (residual_dtype == DType::f32) {
        std::memcpy(&x, p, 4);
      } else {
        x = static_cast<float>(value(p, residual_dtype));
      }
      y = y + times(x, e.residual_multiplier);
    }
    y = std::min(std::max(y, lo[c]), hi[c]);
    uint8_t* to = before.data() + row * out_stride + c * size_of(out_dtype);
    if (out_dtype == DType::f32) {
      std::memcpy(to, &y, 4);
    } else {
      *to = byte_of(y, e.table || out_dtype == DType::s8);
      if (e.table) *to = table[*to];
    }
  }

  bool right() const { return same(before, out); }

  std::string describe() const {
    return " rows " + std::to_string(rows) + " channels " + std::to_string(channels) + " out " +
           std::to_string(static_cast<int>(out_dtype)) + " residual " +
           (e.residual ? std::to_string(static_cast<int>(residual_dtype)) : "no") + " step " + std::to_string(step) +
           " table " + (e.table ? "yes" : "no") + " by row " + (e.row_scale ? "yes" : "no");
  }

  int64_t rows, channels;
  Buffer<float> multiplier, bias, lo, hi, row_scale;
  Buffer<uint8_t> table;
  int64_t repeat, period, step;
  DType residual_dtype;
  int64_t residual_stride;
  Buffer<uint8_t> residual;
  DType out_dtype;
  int64_t out_stride;
  Buffer<uint8_t> out;
  Bytes before;  // then what is expected; what lies between rows stays
  Epilogue e;
};

void check(bool right, const std::string& what) {
  ++(right ? passed : failed);
  if (!right && failed <= 20) std::printf("wrong: %s\n", what.c_str());
}

// The parts of a range that threads may compute.
void in_parts(int64_t n, const std::function<void(int64_t, int64_t)>& run) {
  if (chance(0.6)) return run(0, n);
  for (int64_t first = 0; first < n;) {
    const int64_t last = std::min(n, first + between(1, std::max<int64_t>(1, n)));
    run(first, last);
    first = last;
  }
}

bool takes(DType dtype) { return dtype == DType::s8 ? kernels->takes_signed : kernels->takes_unsigned; }
int correction_of(DType dtype) { return takes(dtype) ? 0 : dtype == DType::s8 ? -1 : 1; }

void test_pack() {
  const int64_t n = some_channels(), k = chance(0.5) ? between(1, 300) : one_of<int64_t>({64, 128, 256});
  // (N, K), its transpose, or neither.
  const bool turned = chance(0.5);
  const int64_t apart = chance(0.7) ? 1 : between(2, 3), stride = (turned ? 1 : k) * apart, step = (turned ? n : 1) * apart;
  Buffer<uint8_t> w((n - 1) * stride + (k - 1) * step + 1), packed(packed_size(n, k));
  fill_random(w.bytes(), w.size);
  fill_random(packed.bytes(), packed.size);
  Bytes expected(static_cast<size_t>(packed.size));
  for (int64_t c = 0; c < n; ++c) {
    uint8_t* block = expected.data() + c / kBlock * packed_block(k);
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      const uint8_t byte = w[c * stride + i * step];
      block[(i / 4 * kBlock + c % kBlock) * 4 + i % 4] = byte;
      sum += static_cast<int8_t>(byte);
    }
    reinterpret_cast<int32_t*>(block + packed_block(k) - 4 * kBlock)[c % kBlock] = 128 * sum;
  }
  kernels->pack(reinterpret_cast<const int8_t*>(w.memory), stride, step, n, k, packed.memory);
  for (int64_t i = 0; i < packed.size; ++i) digest = (digest ^ packed[i]) * 0x100000001B3u;  // one form for all
  check(same(expected, packed), "pack " + std::to_string(n) + " x " + std::to_string(k));
}

void test_gemm() {
  const bool takes_runs = kernels->takes_runs;
  const int64_t m = between(1, 40), n = some_channels(), run = chance(0.5) ? between(1, 300) : one_of<int64_t>({64, 128, 256});
  const int64_t runs = takes_runs ? between(1, 3) : 1, width = takes_runs ? between(1, m) : m, lines = (m - 1) / width + 1;
  const int64_t lda = takes_runs && chance(0.5) ? between(1, run) : run + between(0, 9), step = between(0, run + 9);
  const int64_t pitch = between(0, width * lda), k = runs * run, depth = depth_of(runs, run);
  const DType dtype = some_bytes();
  Buffer<uint8_t> w(n * k), spread(n * depth), packed(packed_size(n, takes_runs ? depth : k));
  fill_random(w.bytes(), w.size);
  const int8_t* weight = reinterpret_cast<const int8_t*>(w.memory);
  for (int64_t i = 0; i < n * depth; ++i) {
    const int64_t c = i / depth, r = i % depth / round_up(run, 4), at = i % round_up(run, 4);
    spread[i] = at < run ? w[c * k + r * run + at] : 0;
  }
  if (takes_runs) {
    kernels->pack(reinterpret_cast<const int8_t*>(spread.memory), depth, 1, n, depth, packed.memory);
  } else {
    kernels->pack(weight, k, 1, n, k, packed.memory);
  }
  const int64_t readable = (lines - 1) * pitch + (width - 1) * lda + (runs - 1) * step + round_up(run, takes_runs ? 4 : kDepth);
  Buffer<uint8_t> a(readable), flipped(readable);
  fill_random(a.bytes(), a.size);
  const bool flips = !takes(dtype);
  for (int64_t i = 0; i < readable; ++i) flipped[i] = static_cast<uint8_t>(a[i] ^ (flips ? 0x80 : 0));
  Case c(m, n, 127.0f * 127.0f * static_cast<float>(k), true);
  kernels->enter();
  in_parts(m, [&](int64_t first, int64_t last) {
    const int64_t channel = between(0, (n - 1) / kBlock) * kBlock;
    std::vector<const uint8_t*> starts;
    for (int64_t line = first / width; line <= (last - 1) / width; ++line) starts.push_back(flipped.memory + line * pitch);
    for (int half = 0; half < 2; ++half) {
      const int64_t begin = half ? channel : 0, end = half ? n : channel;
      if (begin == end) continue;
      Gemm g = {};
      g.lines = starts.data();
      g.width = width, g.column = first % width, g.lda = lda, g.runs = runs, g.run = run, g.step = step;
      g.a_signed = takes(DType::s8) && (flips || dtype == DType::s8);
      g.correction = correction_of(dtype);
      g.b = packed.memory + begin / kBlock * packed_block(takes_runs ? depth : k);
      g.blocks = (n - begin + kBlock - 1) / kBlock;
      g.rows = last - first, g.first_row = first, g.first_channel = begin, g.channels = end - begin;
      g.epilogue = &c.e;
      kernels->gemm(g);
    }
  });
  kernels->leave();
  for (int64_t r = 0; r < m; ++r) {
    const uint8_t* row = a.memory + r / width * pitch + r % width * lda;
    for (int64_t j = 0; j < n; ++j) {
      int32_t acc = 0;
      for (int64_t i = 0; i < k; ++i) acc += value(row + i / run * step + i % run, dtype) * weight[j * k + i];
      c.expect(r, j, acc);
    }
  }
  check(c.right(), "gemm " + std::to_string(runs) + " runs of " + std::to_string(run) + c.describe());
}

struct Image {
  // Windows of that kernel over a small image.
  Image(int64_t kernel_h, int64_t kernel_w, bool pool) {
    w.channels = some_channels();
    w.stride = w.channels + (chance(0.3) ? between(0, 9) : 0);
    w.dtype = some_bytes();
    w.kernel_h = kernel_h;
    w.kernel_w = kernel_w;
    w.stride_h = chance(0.4) ? 1 : between(1, 3);
    w.stride_w = chance(0.7) ? w.stride_h : between(1, 3);
    w.dilation_h = chance(0.8) ? 1 : between(1, 3);
    w.dilation_w = chance(0.8) ? 1 : between(1, 3);
    w.height = chance(0.1) ? 1 : between(1, 14);
    w.width = chance(0.1) ? between(60, 140) : between(1, 14);
    axis(w.height, w.kernel_h, w.stride_h, w.dilation_h, pool, &w.pad_top, &w.out_height);
    axis(w.width, w.kernel_w, w.stride_w, w.dilation_w, pool, &w.pad_left, &w.out_width);
    images = between(1, 2);
    x = Bytes();
    const int64_t size = (images * w.height * w.width - 1) * w.stride + w.channels;
    buffer.reset(new Buffer<uint8_t>(size));
    fill_random(buffer->bytes(), size);
    w.x = buffer->memory;
  }

  static void axis(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, bool pool, int64_t* pad, int64_t* out) {
    const int64_t reach = (kernel - 1) * dilation;
    // A pool's windows each touch the image.
    *pad = chance(0.3) ? 0 : between(0, reach);
    if (pool) *pad = *pad / dilation * dilation > 0 ? std::min(*pad, reach) : *pad;
    const int64_t most = (size - 1 + *pad) / stride + 1;  // the last window still starts within the image
    *out = std::min<int64_t>(most, chance(0.5) ? most : between(1, most));
    if (!pool && chance(0.2)) *out += 1;
  }

  // The taps of a pixel, those outside of the image null.
  template <class F>
  void taps(int64_t row, F&& f) const {
    const int64_t column = row % w.out_width, line = row / w.out_width % w.out_height;
    const int64_t image = row / w.out_width / w.out_height;
    for (int64_t i = 0; i < w.kernel_h; ++i) {
      for (int64_t j = 0; j < w.kernel_w; ++j) {
        const int64_t y = line * w.stride_h - w.pad_top + i * w.dilation_h;
        const int64_t at = column * w.stride_w - w.pad_left + j * w.dilation_w;
        const bool inside = y >= 0 && y < w.height && at >= 0 && at < w.width;
        f(i, j, inside ? w.x + ((image * w.height + y) * w.width + at) * w.stride : nullptr);
      }
    }
  }

  int64_t lines() const { return images * w.out_height; }
  int64_t rows() const { return lines() * w.out_width; }
  std::string describe() const {
    return " kernel " + std::to_string(w.kernel_h) + "x" + std::to_string(w.kernel_w) + " stride " +
           std::to_string(w.stride_h) + "," + std::to_string(w.stride_w) + " dilation " + std::to_string(w.dilation_h) +
           "," + std::to_string(w.dilation_w) + " pad " + std::to_string(w.pad_top) + "," + std::to_string(w.pad_left) +
           " of " + std::to_string(w.height) + "x" + std::to_string(w.width) + " to " + std::to_string(w.out_height) +
           "x" + std::to_string(w.out_width) + " dtype " + std::to_string(static_cast<int>(w.dtype));
  }

  Window w;
  int64_t images;
  Bytes x;
  std::unique_ptr<Buffer<uint8_t>> buffer;
};

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
  Case c(image.rows(), w.channels, 127.0f * 127.0f * static_cast<float>(w.kernel_h * w.kernel_w));
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

// Does every window touch the image?
bool touches(const Image& image) {
  for (int64_t row = 0; row < image.rows(); ++row) {
    bool inside = false;
    image.taps(row, [&](int64_t, int64_t, const uint8_t* pixel) { inside |= pixel != nullptr; });
    if (!inside) return false;
  }
  return true;
}

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
  Case c(image.rows(), w.channels, 127.0f * static_cast<float>(w.kernel_h * w.kernel_w));
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

void test_elementwise() {
  const int64_t rows = between(1, 80), channels = some_channels();
  const bool has_y = chance(0.5);
  Elementwise op;
  op.channels = channels;
  op.x_dtype = some_bytes();
  op.y_dtype = some_bytes();
  op.x_stride = channels + (chance(0.3) ? between(0, 9) : 0);
  op.y_step = chance(0.3) ? 0 : 1;
  op.y_repeat = chance(0.3) ? between(1, 3) : 1;
  const int64_t distinct = (rows + op.y_repeat - 1) / op.y_repeat;
  op.y_period = chance(0.3) ? between(1, distinct) : distinct;
  op.y_stride = (op.y_step ? channels : 1) + (chance(0.3) ? between(0, 9) : 0);
  Buffer<uint8_t> x((rows - 1) * op.x_stride + channels), y((op.y_period - 1) * op.y_stride + (op.y_step ? channels : 1));
  fill_random(x.bytes(), x.size);
  fill_random(y.bytes(), y.size);
  op.x = x.memory;
  op.y = has_y ? y.memory : nullptr;
  Case c(rows, channels, has_y ? 127.0f * 127.0f : 127.0f);
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->elementwise(op, c.e, first, last); });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < channels; ++k) {
      int32_t acc = value(&x[r * op.x_stride + k], op.x_dtype);
      if (has_y) acc *= value(&y[r / op.y_repeat % op.y_period * op.y_stride + k * op.y_step], op.y_dtype);
      c.expect(r, k, acc);
    }
  }
  check(c.right(), std::string("elementwise") + (has_y ? " x * y" : "") + c.describe());
}

void test_sum() {
  const int64_t rows = between(1, 6), channels = some_channels(), terms = chance(0.2) ? between(60, 200) : between(1, 50);
  const int64_t stride = channels + (chance(0.3) ? between(0, 9) : 0);
  const DType dtype = some_bytes();
  Buffer<uint8_t> x((rows * terms - 1) * stride + channels);
  fill_random(x.bytes(), x.size);
  Case c(rows, channels, 127.0f * static_cast<float>(terms));
  in_parts(rows, [&](int64_t first, int64_t last) {
    kernels->sum({x.memory, dtype, stride, terms, channels}, c.e, first, last);
  });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < channels; ++k) {
      int32_t acc = 0;
      for (int64_t t = 0; t < terms; ++t) acc += value(&x[(r * terms + t) * stride + k], dtype);
      c.expect(r, k, acc);
    }
  }
  check(c.right(), "sum terms " + std::to_string(terms) + c.describe());
}

// Rows of one type to rows of another, filled at random.
struct Two {
  Two(DType from, DType to, int64_t count, int64_t cols)
      : stride((cols + (chance(0.3) ? between(0, 5) : 0)) * size_of(from)),
        out_stride((cols + (chance(0.3) ? between(0, 5) : 0)) * size_of(to)),
        x((count - 1) * stride + cols * size_of(from)),
        out((count - 1) * out_stride + cols * size_of(to)),
        r{x.memory, from, stride, out.memory, to, out_stride, cols} {
    fill_random(x.bytes(), x.size);
    fill_random(out.bytes(), out.size);
    expected.assign(out.memory, out.memory + out.size);
  }
  float* row(int64_t i) { return reinterpret_cast<float*>(x.memory + i * stride); }
  bool right() const { return same(expected, out); }
  // Whether the output is `other`, whichever numbers its NaN are.
  bool is_like(const Bytes& other) const {
    const int64_t size = size_of(r.out_dtype);
    for (int64_t i = 0; i < out.size; i += size) {
      float a = 0, b = 0;
      std::memcpy(&a, &out[i], static_cast<size_t>(size));
      std::memcpy(&b, &other[static_cast<size_t>(i)], static_cast<size_t>(size));
      if (!(std::isnan(a) && std::isnan(b)) && std::memcmp(&a, &b, 4) != 0) return false;
    }
    return true;
  }
  int64_t stride, out_stride;
  Buffer<uint8_t> x, out;
  Rows r;
  Bytes expected;
};

uint8_t quantized(float x, float multiplier, DType dtype) {
  float y = times(std::isnan(x) ? 0.0f : x, multiplier);
  y = std::min(std::max(y, dtype == DType::s8 ? -127.0f : 0.0f), dtype == DType::s8 ? 127.0f : 255.0f);
  return byte_of(y, dtype == DType::s8);
}

int64_t some_columns() { return chance(0.3) ? between(1, 20) : chance(0.1) ? between(4000, 4300) : between(1, 400); }

void test_table() {
  const int64_t rows = between(1, 9), cols = some_columns();
  Two t(DType::s8, DType::s8, rows, cols);
  Buffer<uint8_t> table(256);
  fill_random(table.bytes(), 256);
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->table(t.r, table.memory, first, last); });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) t.expected[static_cast<size_t>(r * t.out_stride + c)] = table[t.x[r * t.stride + c]];
  }
  check(t.right(), "table cols " + std::to_string(cols));
}

void test_quantize() {
  const int64_t rows = between(1, 9), cols = some_columns(), step = between(0, 1);
  const DType dtype = some_bytes();
  Two t(DType::f32, dtype, rows, cols);
  Buffer<float> multiplier(step ? cols : 1);
  for (int64_t i = 0; i < multiplier.size; ++i) multiplier[i] = chance(0.2) ? 1.0f : uniform(0.1f, 10.0f);
  for (int64_t r = 0; r < rows; ++r) {
    fill_random(t.row(r), cols, chance(0.1) ? 1e12f : 60.0f);
    for (int64_t c = 0; c < cols; ++c) {
      if (chance(0.02)) t.row(r)[c] = one_of({NAN, INFINITY, -INFINITY, 3e38f, -3e38f, -0.0f});
      if (chance(0.2)) t.row(r)[c] = std::round(t.row(r)[c]) + 0.5f;
    }
  }
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->quantize(t.r, multiplier.memory, step, first, last); });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      t.expected[static_cast<size_t>(r * t.out_stride + c)] = quantized(t.row(r)[c], multiplier[c * step], dtype);
    }
  }
  check(t.right(), "quantize cols " + std::to_string(cols) + " step " + std::to_string(step));
}

void test_dequantize() {
  const int64_t rows = between(1, 9), cols = some_columns(), step = between(0, 1);
  Two t(some_bytes(), DType::f32, rows, cols);
  Buffer<float> scale(step ? cols : 1);
  fill_random(scale.memory, scale.size, 1.0f);
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->dequantize(t.r, scale.memory, step, first, last); });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const float y = static_cast<float>(value(&t.x[r * t.stride + c], t.r.x_dtype)) * scale[c * step];
      std::memcpy(t.expected.data() + r * t.out_stride + c * 4, &y, 4);
    }
  }
  check(t.right(), "dequantize cols " + std::to_string(cols) + " step " + std::to_string(step));
}

// Floats within `tolerance` of what is expected (NaN where NaN is), or bytes one off at most, and then near a tie.
bool near(const Two& t, int64_t row, int64_t c, double y, double tolerance, float multiplier) {
  const uint8_t* p = t.out.memory + row * t.out_stride + c * size_of(t.r.out_dtype);
  if (t.r.out_dtype == DType::f32) {
    float got;
    std::memcpy(&got, p, 4);
    return std::isnan(y) ? std::isnan(got) : std::fabs(static_cast<double>(got) - y) <= tolerance;
  }
  const uint8_t expected = quantized(static_cast<float>(y), multiplier, t.r.out_dtype);
  if (*p == expected) return true;
  return std::abs(value(p, t.r.out_dtype) - value(&expected, t.r.out_dtype)) == 1 &&
         std::fabs(std::fabs(y * multiplier - std::trunc(y * multiplier)) - 0.5) <= 2 * tolerance * multiplier + 1e-5;
}

Function some_function() {
  Function f = {};
  f.kind = one_of({Function::normal, Function::sigmoid});
  f.linear = uniform(0.5f, 2), f.cubic = chance(0.5) ? 0.0f : uniform(0.01f, 0.1f);
  f.factor = uniform(0.5f, 3), f.input_factor = one_of({1.0f, -1.0f});
  return f;
}

double exactly(const Function& f, double x) {
  x *= static_cast<double>(f.input_factor);
  const double tail = f.kind == Function::normal ? std::erfc(-x / std::sqrt(2.0)) / 2
                                                 : 1 / (1 + std::exp(-(f.linear * x + f.cubic * x * x * x)));
  return static_cast<double>(f.factor) * (tail == 0 ? 0.0 : x * tail);
}

void test_function() {
  const int64_t rows = between(1, 6), cols = some_columns();
  Two t(DType::f32, DType::f32, rows, cols);
  for (int64_t r = 0; r < rows; ++r) {
    fill_random(t.row(r), cols, chance(0.1) ? 1e6f : 3.0f);
    if (chance(0.2)) t.row(r)[between(0, cols - 1)] = one_of({NAN, INFINITY, -INFINITY, 0.0f});
  }
  const Function f = some_function();
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->function(t.r, f, first, last); });
  bool right = true;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const double x = static_cast<double>(t.row(r)[c]), y = exactly(f, x);
      float got;
      std::memcpy(&got, t.out.memory + r * t.out_stride + c * 4, 4);
      const bool is_infinite = std::isinf(y) && static_cast<double>(got) == y;
      right &= is_infinite || near(t, r, c, y, 1e-6 * (1 + std::fabs(x)) * static_cast<double>(f.factor), 1.0f);
    }
  }
  check(right, "function cols " + std::to_string(cols) + " kind " + std::to_string(f.kind));
}

// Scales and rows as they are defined; those of a function as of the floats that it makes.
void test_quantize_rows() {
  const int64_t rows = between(1, 9), cols = some_columns();
  Two t(DType::f32, DType::s8, rows, cols), made(DType::f32, DType::f32, rows, cols);
  const bool has_factor = chance(0.5), has_function = chance(0.3);
  Buffer<float> factor(cols), scales(rows), room(cols);
  for (int64_t c = 0; c < cols; ++c) factor[c] = uniform(0.1f, 10.0f);
  const float size = one_of({1e-25f, 1e-3f, 1.0f, 60.0f, 1e30f});
  for (int64_t r = 0; r < rows; ++r) {
    fill_random(t.row(r), cols, has_function ? 3.0f : size);
    if (chance(0.1)) std::fill(t.row(r), t.row(r) + cols, 0.0f);
    if (chance(0.1)) t.row(r)[between(0, cols - 1)] = one_of({NAN, INFINITY, -INFINITY});
    std::memcpy(made.row(r), t.row(r), static_cast<size_t>(cols) * 4);
  }
  const Function f = some_function();
  in_parts(rows, [&](int64_t first, int64_t last) {
    kernels->quantize_rows(t.r, has_factor ? factor.memory : nullptr, has_function ? &f : nullptr, room.memory,
                           scales.memory, first, last);
  });
  if (has_function) kernels->function(made.r, f, 0, rows);
  bool right = true;
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* values = has_function ? made.out.memory + r * made.out_stride : made.x.memory + r * made.stride;
    float amax = 1e-20f;
    std::vector<float> x(static_cast<size_t>(cols));
    std::memcpy(x.data(), values, x.size() * 4);
    for (int64_t c = 0; c < cols; ++c) {
      float& y = x[static_cast<size_t>(c)];
      if (has_factor) y = times(y, factor[c]);
      if (!std::isnan(y)) amax = std::max(amax, std::fabs(y));
    }
    const float scale = times(std::min(amax, FLT_MAX), 1.0f / 127.0f);
    right &= scales[r] == scale;
    for (int64_t c = 0; c < cols; ++c) {
      t.expected[static_cast<size_t>(r * t.out_stride + c)] = quantized(x[static_cast<size_t>(c)], 1.0f / scale, DType::s8);
    }
  }
  check(right && t.right(), "quantize_rows cols " + std::to_string(cols) + " factor " + std::to_string(has_factor) +
                                " function " + std::to_string(has_function));
}

void test_softmax() {
  const int64_t rows = between(1, 9), cols = some_columns();
  Two t(DType::f32, one_of({DType::f32, DType::s8, DType::u8}), rows, cols);
  const float scale = one_of({0.1f, 1.0f, 5.0f, 50.0f}), multiplier = one_of({127.0f, 255.0f, 400.0f, 3e9f});
  for (int64_t r = 0; r < rows; ++r) {
    fill_random(t.row(r), cols, scale);
    for (int64_t c = 0; c < cols; ++c) {
      if (chance(0.05)) t.row(r)[c] = -INFINITY;
    }
    if (chance(0.1)) std::fill(t.row(r), t.row(r) + cols, -INFINITY);
    if (chance(0.05)) t.row(r)[between(0, cols - 1)] = NAN;
    if (chance(0.05)) t.row(r)[between(0, cols - 1)] = INFINITY;
  }
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->softmax(t.r, multiplier, first, last); });
  const Bytes together(t.out.memory, t.out.memory + t.out.size);
  for (int64_t r = 0; r < rows; ++r) kernels->softmax(t.r, multiplier, r, r + 1);
  bool right = t.is_like(together);
  for (int64_t r = 0; r < rows; ++r) {
    double most = -INFINITY, total = 0;
    for (int64_t c = 0; c < cols; ++c) {
      if (std::isnan(t.row(r)[c])) total = NAN;
      most = std::max(most, static_cast<double>(t.row(r)[c]));
    }
    for (int64_t c = 0; c < cols; ++c) total += std::exp(static_cast<double>(t.row(r)[c]) - most);
    for (int64_t c = 0; c < cols; ++c) {
      const double y = std::exp(static_cast<double>(t.row(r)[c]) - most) / total;
      // 1 rounding of the difference, 2 of the exponential, the others of the sum
      const double difference = std::isfinite(most) ? std::fabs(static_cast<double>(t.row(r)[c]) - most) : 0;
      right &= near(t, r, c, y, y * (1e-6 + 6e-8 * std::min(difference, 110.0)) + 2e-38, multiplier);
    }
  }
  check(right, "softmax cols " + std::to_string(cols) + " out " + std::to_string(static_cast<int>(t.r.out_dtype)));
}

void test_layer_norm() {
  const int64_t rows = between(1, 9), cols = some_columns();
  Two t(DType::f32, one_of({DType::f32, DType::s8, DType::u8}), rows, cols);
  const float multiplier = one_of({20.0f, 60.0f}), epsilon = one_of({1e-6f, 1e-5f});
  const bool center = chance(0.7);
  Buffer<float> scale(cols), bias(cols);
  fill_random(scale.memory, cols, 1.0f);
  fill_random(bias.memory, cols, 1.0f);
  const float* scales = chance(0.8) ? scale.memory : nullptr;
  const float* biases = chance(0.6) ? bias.memory : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    fill_random(t.row(r), cols, one_of({0.01f, 1.0f, 30.0f}));
    const float shift = chance(0.5) ? 0.0f : uniform(-10.0f, 10.0f);
    for (int64_t c = 0; c < cols; ++c) t.row(r)[c] += shift;
  }
  const int64_t stride = cols + between(0, 1) * between(0, 5);
  Buffer<uint8_t> bytes((rows - 1) * stride + cols), apart(bytes.size);
  Norm norm = {scales, biases, epsilon, center, multiplier, chance(0.7) ? bytes.memory : nullptr, some_bytes(), stride};
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->layer_norm(t.r, norm, first, last); });
  const Bytes together(t.out.memory, t.out.memory + t.out.size);
  const bool has_bytes = norm.bytes;
  norm.bytes = nullptr;
  for (int64_t r = 0; r < rows; ++r) kernels->layer_norm(t.r, norm, r, r + 1);
  bool right = t.is_like(together);
  if (has_bytes) {
    const Rows to_bytes = {t.r.x, DType::f32, t.r.x_stride, apart.memory, norm.bytes_dtype, stride, cols};
    kernels->layer_norm(to_bytes, norm, 0, rows);
    for (int64_t r = 0; r < rows; ++r) {
      right &= !std::memcmp(bytes.memory + r * stride, apart.memory + r * stride, static_cast<size_t>(cols));
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, variance = 0, largest = 0;
    for (int64_t c = 0; c < cols; ++c) {
      mean += static_cast<double>(t.row(r)[c]);
      largest = std::max(largest, std::fabs(static_cast<double>(t.row(r)[c])));
    }
    mean = center ? mean / static_cast<double>(cols) : 0;
    for (int64_t c = 0; c < cols; ++c) variance += std::pow(static_cast<double>(t.row(r)[c]) - mean, 2);
    const double factor = 1 / std::sqrt(variance / static_cast<double>(cols) + static_cast<double>(epsilon));
    for (int64_t c = 0; c < cols; ++c) {
      const double a = scales ? static_cast<double>(scales[c]) : 1, b = biases ? static_cast<double>(biases[c]) : 0;
      const double y = (static_cast<double>(t.row(r)[c]) - mean) * factor * a + b;
      const double tolerance = 1e-6 * (std::fabs(y) + std::fabs(b)) + 1e-6 * largest * factor * std::fabs(a);
      right &= near(t, r, c, y, tolerance, multiplier);
    }
  }
  check(right, "layer_norm cols " + std::to_string(cols) + " out " + std::to_string(static_cast<int>(t.r.out_dtype)));
}

// Weights in groups: as `GroupedWeights` packs levels, and their scales.
struct GroupedWeights {
  GroupedWeights(int64_t n, int64_t k, int64_t group_size, bool is_int4)
      : n(n), k(k), group_size(group_size), is_int4(is_int4), levels(static_cast<size_t>(n * k)),
        blocks(round_up(n, kBlock) / kBlock), lines(lines_of(k, is_int4)), groups((k + group_size - 1) / group_size),
        packed(blocks * lines * kBlock), scale(blocks * groups * kBlock) {
    std::memset(packed.memory, 0, static_cast<size_t>(packed.size));
    for (int64_t i = 0; i < scale.size; ++i) scale[i] = uniform(0.001f, 0.1f);
    for (int64_t c = 0; c < n; ++c) {
      for (int64_t i = 0; i < k; ++i) {
        const int level = static_cast<int>(is_int4 ? between(-8, 7) : between(-127, 127));
        levels[static_cast<size_t>(c * k + i)] = level;
        uint8_t& byte = packed[(c / kBlock * lines + (is_int4 ? i / 2 : i)) * kBlock + c % kBlock];
        byte = static_cast<uint8_t>(is_int4 ? byte | (level & 15) << (i % 2 * 4) : level);
      }
    }
  }
  double weight(int64_t c, int64_t i) const {
    const double step = static_cast<double>(scale[(c / kBlock * groups + i / group_size) * kBlock + c % kBlock]);
    return step * levels[static_cast<size_t>(c * k + i)];
  }
  int64_t n, k, group_size;
  bool is_int4;
  std::vector<int> levels;
  int64_t blocks, lines, groups;
  Buffer<uint8_t> packed;
  Buffer<float> scale;
};

void test_grouped_dot() {
  const int64_t rows = chance(0.7) ? between(1, 8) : between(1, 60), k = between(1, chance(0.5) ? 40 : 600);
  const int64_t n = some_channels(), group_size = one_of<int64_t>({2, 16, 48, 128, 512});
  const GroupedWeights w(n, k, group_size, chance(0.5));
  const int64_t x_stride = k + between(0, 1) * between(0, 9), out_stride = n + between(0, 1) * between(0, 9);
  const int64_t repeat = chance(0.3) ? between(1, 3) : 1, period = chance(0.5) ? between(1, 3) : (rows + repeat - 1) / repeat;
  const int64_t step = chance(0.3) ? 0 : 1, residual_stride = (step ? n : 1) + between(0, 1) * between(0, 9);
  Buffer<float> x((rows - 1) * x_stride + k), bias(n), residual(period * residual_stride), out((rows - 1) * out_stride + n);
  fill_random(x.memory, x.size, 1.0f);
  fill_random(bias.memory, n, 1.0f);
  fill_random(residual.memory, residual.size, 1.0f);
  fill_random(out.memory, out.size, 1.0f);
  const std::vector<float> before(out.memory, out.memory + out.size);
  Epilogue e = {};
  e.bias = chance(0.5) ? bias.memory : nullptr;
  e.residual = chance(0.5) ? residual.bytes() : nullptr;
  e.residual_dtype = e.out_dtype = DType::f32;
  e.residual_stride = residual_stride * 4, e.residual_repeat = repeat, e.residual_period = period, e.residual_step = step;
  e.out = out.bytes();
  e.out_stride = out_stride * 4;
  const float lo = chance(0.5) ? 0.0f : -INFINITY, hi = chance(0.5) ? 6.0f : INFINITY;
  const auto compute = [&](int64_t first_row, int64_t last_row, int64_t first_block, int64_t last_block) {
    GroupedDot d = {};
    d.x = x.bytes() + first_row * x_stride * 4, d.x_stride = x_stride * 4;
    d.weight = w.packed.memory + first_block * w.lines * kBlock;
    d.scale = w.scale.memory + first_block * w.groups * kBlock;
    d.is_int4 = w.is_int4, d.depth = k, d.group_size = group_size;
    d.rows = last_row - first_row, d.first_row = first_row;
    d.first_channel = first_block * kBlock, d.channels = std::min(last_block * kBlock, n) - d.first_channel;
    d.lo = lo, d.hi = hi, d.epilogue = &e;
    Buffer<float> scratch(d.scratch_size());
    d.scratch = scratch.memory;
    kernels->grouped_dot(d);
  };
  compute(0, rows, 0, w.blocks);
  bool right = true;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < out_stride && r * out_stride + c < out.size; ++c) {
      const float got = out[r * out_stride + c];
      if (c >= n) {
        right &= got == before[static_cast<size_t>(r * out_stride + c)];
        continue;
      }
      double y = 0, magnitude = 0;
      for (int64_t i = 0; i < k; ++i) {
        const double product = w.weight(c, i) * static_cast<double>(x[r * x_stride + i]);
        y += product;
        magnitude += std::fabs(product);
      }
      const auto plus = [&](double term) { y += term, magnitude += std::fabs(term); };
      if (e.bias) plus(static_cast<double>(bias[c]));
      if (e.residual) plus(static_cast<double>(residual[r / repeat % period * residual_stride + (step ? c : 0)]));
      y = std::min(std::max(y, static_cast<double>(lo)), static_cast<double>(hi));
      // Every sum and product is rounded: of a group, and then of the groups, bias and residual.
      const double roundings = static_cast<double>(std::min(group_size, k) + w.groups) + 4;
      right &= std::fabs(static_cast<double>(got) - y) <= std::ldexp(magnitude, -24) * roundings;
    }
  }
  // The same bits of parts.
  const std::vector<float> whole(out.memory, out.memory + out.size);
  in_parts(rows, [&](int64_t first, int64_t last) {
    in_parts(w.blocks, [&](int64_t from, int64_t to) { compute(first, last, from, to); });
  });
  right &= std::memcmp(whole.data(), out.memory, whole.size() * sizeof(float)) == 0;
  check(right, "grouped_dot rows " + std::to_string(rows) + " channels " + std::to_string(n) + " depth " + std::to_string(k) +
                   " group " + std::to_string(group_size) + (w.is_int4 ? " int4" : " int8"));
}

// ------------------------------------------------------------------------------------------------------------ timings

const char* wanted = "";  // what the names of timings contain

// Of this thread: other programs may share the machine.
double seconds_now() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

void time(const char* name, double operations, const char* unit, const std::function<void()>& run) {
  if (!std::strstr(name, wanted)) return;
  double best = 1e9;
  for (int i = 0; i < 20; ++i) {
    const double start = seconds_now();
    int times = 0;
    double seconds = 0;
    do {
      for (int j = 0; j < 8; ++j) run();
      times += 8;
      seconds = seconds_now() - start;
    } while (seconds < 2e-3);
    best = std::min(best, seconds / times);
  }
  std::printf("%-48s %9.2f us %8.1f %s\n", name, best * 1e6, operations / best / 1e9, unit);
}

struct Plain {
  Plain(int64_t rows, int64_t channels, DType dtype = DType::s8)
      : vectors(static_cast<size_t>(4 * channels)), out(rows * channels * size_of(dtype)) {
    const size_t n = static_cast<size_t>(channels);
    for (size_t c = 0; c < n; ++c) {
      vectors[c] = 0.001f;
      vectors[2 * n + c] = dtype == DType::u8 ? 0.0f : -127.0f;
      vectors[3 * n + c] = 127.0f;
    }
    e = {vectors.data(), vectors.data() + n, vectors.data() + 2 * n, vectors.data() + 3 * n, nullptr, nullptr, nullptr,
         DType::s8,      channels,           1,                      rows,                   1,       0.5f,
         out.memory,     dtype,              channels * size_of(dtype)};
  }
  std::vector<float> vectors;
  Buffer<uint8_t> out;
  Epilogue e;
};

void bench_depthwise(int64_t size, int64_t channels, int64_t kernel, int64_t stride) {
  const int64_t out = (size + stride - 1) / stride;
  const int64_t pad = std::max<int64_t>(0, (out - 1) * stride + kernel - size) / 2;
  Buffer<uint8_t> x(size * size * channels), w(kernel * kernel * channels), packed(depthwise_size(kernel, kernel, channels));
  fill_random(x.bytes(), x.size);
  fill_random(w.bytes(), w.size);
  kernels->pack_depthwise(reinterpret_cast<int8_t*>(w.memory), kernel, kernel, channels, packed.memory);
  const Window window = {x.memory, DType::s8, size, size, channels, channels, kernel, kernel, stride, stride, pad, pad,
                         1,        1,         out,  out};
  Plain p(out * out, channels);
  char name[100];
  std::snprintf(name, sizeof name, "depthwise %dx%d stride %d, %dx%dx%d", static_cast<int>(kernel),
                static_cast<int>(kernel), static_cast<int>(stride), static_cast<int>(size), static_cast<int>(size),
                static_cast<int>(channels));
  time(name, static_cast<double>(2 * out * out * channels * kernel * kernel), "GOP/s",
       [&] { kernels->depthwise(window, packed.memory, p.e, 0, out); });
}

void bench() {
  for (auto [size, channels, kernel, stride] : std::initializer_list<std::array<int64_t, 4>>{
           {112, 32, 3, 1}, {112, 96, 3, 2}, {56, 128, 3, 1}, {56, 144, 3, 1}, {56, 144, 5, 2}, {28, 240, 5, 1},
           {28, 256, 5, 1}, {28, 240, 3, 2}, {14, 480, 3, 1}, {14, 480, 5, 1}, {14, 672, 5, 1}, {14, 672, 5, 2},
           {7, 1152, 5, 1}, {7, 1152, 3, 1}, {56, 96, 7, 1}, {14, 384, 7, 1}}) {
    bench_depthwise(size, channels, kernel, stride);
  }
  for (auto [m, n, k] : std::initializer_list<std::array<int64_t, 3>>{
           {3136, 64, 64}, {3136, 256, 64}, {3136, 64, 256}, {12544, 32, 27}, {12544, 16, 32}, {3136, 24, 144}, {784, 240, 40},
           {256, 1024, 1024}, {1, 1024, 1024}}) {
    Buffer<uint8_t> a(m * round_up(k, 64) + 64), b(packed_size(n, k)), w(n * k);
    fill_random(a.bytes(), a.size);
    fill_random(w.bytes(), w.size);
    kernels->pack(reinterpret_cast<int8_t*>(w.memory), k, 1, n, k, b.memory);
    Plain p(m, n);
    kernels->enter();
    for (bool residual : {false, true}) {
      Buffer<uint8_t> r(m * n);
      fill_random(r.bytes(), r.size);
      p.e.residual = residual ? r.memory : nullptr;
      char name[100];
      std::snprintf(name, sizeof name, "gemm %d x %d x %d%s", static_cast<int>(m), static_cast<int>(n),
                    static_cast<int>(k), residual ? ", residual" : "");
      time(name, static_cast<double>(2 * m * n * k), "GOP/s", [&] {
        const int64_t rows = std::max<int64_t>(1, 65536 / k);
        for (int64_t row = 0; row < m; row += rows) {
          const uint8_t* line = a.memory + row * k;
          Gemm g = {};
          g.lines = &line, g.width = g.rows = std::min(rows, m - row), g.lda = k, g.runs = 1, g.run = k;
          g.a_signed = kernels->takes_signed, g.correction = kernels->takes_signed ? 0 : -1;
          g.b = b.memory, g.blocks = (n + kBlock - 1) / kBlock, g.first_row = row, g.channels = n, g.epilogue = &p.e;
          kernels->gemm(g);
        }
      });
    }
    kernels->leave();
  }
  for (const bool is_int4 : {false, true}) {
    const int64_t n = 512, k = 1024;
    const GroupedWeights w(n, k, 128, is_int4);
    for (const int64_t rows : {1, 2, 4, 6, 8, 12, 16, 24, 32, 64, 128}) {
      Buffer<float> x(rows * k), out(rows * n);
      fill_random(x.memory, x.size, 1.0f);
      Epilogue e = {};
      e.residual_dtype = e.out_dtype = DType::f32;
      e.out = out.bytes(), e.out_stride = n * 4;
      GroupedDot d = {};
      d.x = x.bytes(), d.x_stride = k * 4, d.weight = w.packed.memory, d.scale = w.scale.memory;
      d.is_int4 = is_int4, d.depth = k, d.group_size = 128, d.rows = rows, d.channels = n;
      d.lo = -INFINITY, d.hi = INFINITY, d.epilogue = &e;
      Buffer<float> scratch(d.scratch_size());
      d.scratch = scratch.memory;
      char name[100];
      std::snprintf(name, sizeof name, "grouped_dot %s %d x %d x %d", is_int4 ? "int4" : "int8", static_cast<int>(rows),
                    static_cast<int>(n), static_cast<int>(k));
      time(name, static_cast<double>(2 * rows * n * k), "GFLOP/s", [&] { kernels->grouped_dot(d); });
    }
  }
  {
    const int64_t channels = 64, size = 112;
    Buffer<uint8_t> x(size * size * channels), out(56 * 56 * channels);
    fill_random(x.bytes(), x.size);
    const Window window = {x.memory, DType::s8, size, size, channels, channels, 3, 3, 2, 2, 1, 1, 1, 1, 56, 56};
    time("max_pool 3x3 stride 2, 112x112x64", static_cast<double>(x.size + out.size), "GB/s",
         [&] { kernels->max_pool(window, out.memory, channels, 0, 56); });
  }
  {
    const int64_t channels = 256, size = 28;
    Buffer<uint8_t> x(size * size * channels);
    fill_random(x.bytes(), x.size);
    Plain p(size * size, channels);
    const Window window = {x.memory, DType::s8, size, size, channels, channels, 3, 3, 1, 1, 1, 1, 1, 1, size, size};
    time("sum_pool 3x3, 28x28x256", static_cast<double>(2 * x.size), "GB/s",
         [&] { kernels->sum_pool(window, p.e, 0, size); });
  }
  for (auto [terms, channels] : std::initializer_list<std::array<int64_t, 2>>{{49, 2048}, {49, 1280}, {3136, 64}, {12544, 32}}) {
    Buffer<uint8_t> x(terms * channels);
    fill_random(x.bytes(), x.size);
    Plain p(1, channels);
    char name[100];
    std::snprintf(name, sizeof name, "sum of %d rows of %d", static_cast<int>(terms), static_cast<int>(channels));
    time(name, static_cast<double>(x.size), "GB/s", [&] { kernels->sum({x.memory, DType::s8, channels, terms, channels}, p.e, 0, 1); });
  }
  for (int64_t channels : {16, 24, 64, 256, 1024}) {
    const int64_t rows = 200704 / channels;
    Buffer<uint8_t> x(rows * channels), y(rows * channels), table(256);
    fill_random(x.bytes(), x.size);
    fill_random(y.bytes(), y.size);
    fill_random(table.bytes(), 256);
    Plain p(rows, channels);
    p.e.residual = y.memory;
    char name[100];
    std::snprintf(name, sizeof name, "x + y, %d x %d", static_cast<int>(rows), static_cast<int>(channels));
    Elementwise op = {x.memory, DType::s8, channels, nullptr, DType::s8, 0, 1, 1, 1, channels};
    time(name, static_cast<double>(3 * x.size), "GB/s", [&] { kernels->elementwise(op, p.e, 0, rows); });
    p.e.residual = nullptr;
    op = {x.memory, DType::s8, channels, y.memory, DType::s8, channels, rows, 1, 1, channels};
    std::snprintf(name, sizeof name, "x * y (one row), %d x %d", static_cast<int>(rows), static_cast<int>(channels));
    time(name, static_cast<double>(2 * x.size), "GB/s", [&] { kernels->elementwise(op, p.e, 0, rows); });
    op.y = nullptr;
    p.e.table = table.memory;
    std::snprintf(name, sizeof name, "rescale and look up, %d x %d", static_cast<int>(rows), static_cast<int>(channels));
    time(name, static_cast<double>(2 * x.size), "GB/s", [&] { kernels->elementwise(op, p.e, 0, rows); });
  }
  {
    const int64_t n = 224 * 224 * 3;
    Buffer<float> x(n);
    Buffer<uint8_t> q(n), table(256);
    fill_random(x.memory, n, 50.0f);
    fill_random(table.bytes(), 256);
    const float one = 1.0f;
    const Rows rows = {x.bytes(), DType::f32, 12, q.memory, DType::s8, 3, 3};
    time("quantize 224x224x3", static_cast<double>(5 * n), "GB/s", [&] { kernels->quantize(rows, &one, 0, 0, n / 3); });
    const Rows back = {q.memory, DType::s8, 3, x.bytes(), DType::f32, 12, 3};
    time("dequantize 224x224x3", static_cast<double>(5 * n), "GB/s", [&] { kernels->dequantize(back, &one, 0, 0, n / 3); });
    Buffer<uint8_t> out(n);
    const Rows same = {q.memory, DType::s8, 3, out.memory, DType::s8, 3, 3};
    time("table 224x224x3", static_cast<double>(2 * n), "GB/s", [&] { kernels->table(same, table.memory, 0, n / 3); });
  }
  for (DType dtype : {DType::f32, DType::s8}) {
    const char* to = dtype == DType::f32 ? "f32" : "s8";
    Buffer<float> x(1536 * 128), out(1536 * 128), scale(384), bias(384);
    fill_random(x.memory, x.size, 2.0f);
    fill_random(scale.memory, 384, 1.0f);
    fill_random(bias.memory, 384, 1.0f);
    char name[100];
    const Rows rows = {x.bytes(), DType::f32, 512, out.bytes(), dtype, 128 * size_of(dtype), 128};
    std::snprintf(name, sizeof name, "softmax 1536 x 128 to %s", to);
    time(name, 1536 * 128, "G/s", [&] { kernels->softmax(rows, 127.0f, 0, 1536); });
    const Rows wide = {x.bytes(), DType::f32, 1536, out.bytes(), dtype, 384 * size_of(dtype), 384};
    std::snprintf(name, sizeof name, "layer_norm 128 x 384 to %s", to);
    time(name, 128 * 384, "G/s", [&] { kernels->layer_norm(wide, {scale.memory, bias.memory, 1e-6f, true, 30.0f, nullptr, DType::s8, 0}, 0, 128); });
  }
}

int run(int argc, char** argv) {
  std::vector<std::string> names;
  uint64_t seed = 1;
  bool benches = false;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--bench")) {
      benches = true;
      if (i + 1 < argc) wanted = argv[++i];
    } else if (std::isdigit(*argv[i])) {
      seed = static_cast<uint64_t>(std::atoll(argv[i]));
    } else {
      names.push_back(argv[i]);
    }
  }
  void (*const tests[])() = {test_pack, test_gemm, test_gemm, test_grouped_dot, test_patches, test_band, test_depthwise, test_depthwise,  test_max_pool, test_sum_pool,
                             test_elementwise, test_sum,  test_table,     test_quantize,   test_dequantize,
                             test_softmax,  test_layer_norm, test_function,  test_quantize_rows};
  const char* rounds = std::getenv("ROUNDS");
  uint64_t first_digest = 0;
  bool right = true;
  for (const Kernels* each : machine_kernels(names)) {
    kernels = each;
    if (benches) {
      std::printf("%s, peak %.1f GOP/s\n", kernels->name, kernels->peak());
      bench();
      continue;
    }
    generator.seed(seed);
    passed = failed = 0;
    digest = 0xCBF29CE484222325u;
    for (int i = 0; i < (rounds ? std::atoi(rounds) : 200); ++i) {
      for (const auto test : tests) test();
    }
    if (!first_digest) first_digest = digest;
    check(digest == first_digest, std::string(kernels->name) + ": other bytes than the first instruction set's");
    std::printf("%s: %d passed, %d failed, bytes %016llx\n", kernels->name, passed, failed,
                static_cast<unsigned long long>(digest));
    right &= !failed;
  }
  return right ? 0 : 1;
}

}  // namespace
}  // namespace jaxq

int main(int argc, char** argv) { return jaxq::run(argc, argv); }
