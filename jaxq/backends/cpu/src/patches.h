// Rows of a convolution's input patches, for a cache-sized range of output pixels, and the packing of weights.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

inline void patches(const Patches& p, int64_t first, int64_t last) {
  const Window& w = *p.window;
  const int64_t channels = p.channels;
  const bool together = w.dilation_w == 1 && w.stride == channels;  // a line of the kernel is one piece of memory
  uint8_t* out = p.out;
  int64_t column = first % w.out_width, line = first / w.out_width % w.out_height;
  int64_t image = first / (w.out_width * w.out_height);
  for (int64_t pixel = first; pixel < last; ++pixel, out += p.lda) {
    const int64_t left = column * w.stride_w - w.pad_left;
    uint8_t* to = out;
    for (int64_t i = 0; i < w.kernel_h; ++i) {
      const int64_t y = line * w.stride_h - w.pad_top + i * w.dilation_h;
      if (y < 0 || y >= w.height) {
        fill_bytes(to, w.kernel_w * channels, p.flip);
        to += w.kernel_w * channels;
        continue;
      }
      const uint8_t* from = w.x + ((image * w.height + y) * w.width + left) * w.stride + p.first_channel;
      if (together) {
        const int64_t begin = left < 0 ? (-left < w.kernel_w ? -left : w.kernel_w) : 0;
        const int64_t inside = w.width - left < w.kernel_w ? w.width - left : w.kernel_w;
        const int64_t end = inside > begin ? inside : begin;
        if (begin) fill_bytes(to, begin * channels, p.flip);
        copy_bytes(to + begin * channels, from + begin * channels, (end - begin) * channels, p.flip);
        if (end < w.kernel_w) fill_bytes(to + end * channels, (w.kernel_w - end) * channels, p.flip);
        to += w.kernel_w * channels;
        continue;
      }
      for (int64_t j = 0; j < w.kernel_w; ++j, to += channels) {
        const int64_t x = left + j * w.dilation_w;
        if (x < 0 || x >= w.width) {
          fill_bytes(to, channels, p.flip);
        } else {
          copy_bytes(to, from + j * w.dilation_w * w.stride, channels, p.flip);
        }
      }
    }
    if (++column == w.out_width) {
      column = 0;
      if (++line == w.out_height) line = 0, ++image;
    }
  }
}

inline void pack(const int8_t* w, int64_t stride, int64_t step, int64_t n, int64_t k, uint8_t* packed) {
  for (int64_t start = 0; start < n; start += kBlock, packed += packed_block(k)) {
    int8_t* to = reinterpret_cast<int8_t*>(packed);
    int32_t* sums = reinterpret_cast<int32_t*>(packed + packed_block(k)) - kBlock;
    fill_bytes(packed, packed_block(k), 0);
    for (int64_t c = 0; c < kBlock && start + c < n; ++c) {
      const int8_t* from = w + (start + c) * stride;
      int32_t sum = 0;
      for (int64_t i = 0; i < k; ++i) {
        const int8_t value = from[i * step];
        to[(i / 4 * kBlock + c) * 4 + i % 4] = value;
        sum += value;
      }
      sums[c] = 128 * sum;
    }
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
