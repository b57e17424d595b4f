// Small images, and the windows over them of a convolution or a pool.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include "buffer.h"
#include "kernels.h"
#include "random.h"
#include "tests.h"

namespace jaxq::test {

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

}  // namespace jaxq::test
