// What the matrix product reads of a convolution's input, for a cache-sized range of output pixels, and its packed weights.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

inline void patches(const Patches& p, int64_t first, int64_t last) {
  const Window& w = *p.window;
  const int64_t channels = p.channels;
  const bool together = w.dilation_w == 1 && w.stride == channels;  // a line of the kernel is one piece of memory
  const int64_t line_bytes = w.kernel_w * channels, gap = round_up(line_bytes, 4) - line_bytes;
  uint8_t* out = p.out;
  int64_t column = first % w.out_width, line = first / w.out_width % w.out_height;
  int64_t image = first / (w.out_width * w.out_height);
  for (int64_t pixel = first; pixel < last; ++pixel, out += p.lda) {
    const int64_t left = column * w.stride_w - w.pad_left;
    uint8_t* to = out;
    for (int64_t i = 0; i < w.kernel_h; ++i) {
      const int64_t y = line * w.stride_h - w.pad_top + i * w.dilation_h;
      fill_bytes(to + line_bytes, gap, 0);
      if (y < 0 || y >= w.height) {
        fill_bytes(to, line_bytes, p.flip);
        to += line_bytes + gap;
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
        to += line_bytes + gap;
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
      to += gap;
    }
    if (++column == w.out_width) {
      column = 0;
      if (++line == w.out_height) line = 0, ++image;
    }
  }
}

inline void band(const Band& b, int64_t image, int64_t first, int64_t last) {
  const Window& w = *b.window;
  const int64_t channels = b.channels, line_bytes = b.columns * channels;
  const int64_t begin = b.left < 0 ? (-b.left < b.columns ? -b.left : b.columns) : 0;
  const int64_t inside = w.width - b.left < b.columns ? w.width - b.left : b.columns, end = inside > begin ? inside : begin;
  const uint8_t* from = w.x + (image * w.height * w.width + b.left) * w.stride + b.first_channel;
  uint8_t* to = b.out;
  const bool together = w.stride == channels;  // the pixels of a line are one piece of memory
  if (together && b.columns == w.width && begin == 0 && first >= 0 && last <= w.height) {
    return copy_bytes(to, from + first * line_bytes, (last - first) * line_bytes, b.flip);
  }
  for (int64_t y = first; y < last; ++y, to += line_bytes) {
    if (y < 0 || y >= w.height) {
      fill_bytes(to, line_bytes, b.flip);
      continue;
    }
    const uint8_t* pixels = from + y * w.width * w.stride;
    if (begin) fill_bytes(to, begin * channels, b.flip);
    if (together) {
      copy_bytes(to + begin * channels, pixels + begin * channels, (end - begin) * channels, b.flip);
    } else {
      for (int64_t x = begin; x < end; ++x) copy_bytes(to + x * channels, pixels + x * w.stride, channels, b.flip);
    }
    if (end < b.columns) fill_bytes(to + end * channels, (b.columns - end) * channels, b.flip);
  }
}

// The lines of a block of n channels whose values of K lie together.
inline void pack_rows(const uint8_t* w, int64_t stride, int64_t n, int64_t k, uint8_t* packed) {
  for (int64_t c = 0; c < n; ++c, w += stride) {
    uint8_t* to = packed + 4 * c;
    for (int64_t i = 0; i + 4 <= k; i += 4, to += 4 * kBlock) write(to, read<uint32_t>(w + i));
    if (k % 4) write(to, static_cast<uint32_t>(load_piece(w + k / 4 * 4, k % 4)));
  }
}

// Those of n <= kWidth channels that lie together, rows of K `step` apart.
inline void pack_columns(const uint8_t* w, int64_t step, int64_t n, int64_t k, uint8_t* packed) {
  constexpr int kParts = kWidth / kBlock;
  alignas(64) uint8_t nowhere[4 * kBlock];
  for (int64_t i = 0; i < k; i += 4, packed += 4 * kBlock) {
    I32 row[4], quad[4];
    for (int64_t j = 0; j < 4; ++j) {
      const uint8_t* from = w + (i + j) * step;
      row[j] = i + j < k ? load_parts<1>(&from, n) : zero();
    }
    interleave(row[0], row[1], row[2], row[3], quad);
    for (int64_t v = 0; v < 4; ++v) {
      uint8_t* to[kParts];
      for (int64_t p = 0; p < kParts; ++p) to[p] = p * kBlock < n ? packed + p * packed_block(k) + v * kBlock : nowhere;
      store_parts<kParts>(to, quad[v], kBlock);
    }
  }
}

inline void pack_sums(int64_t k, uint8_t* packed) {
  constexpr int kVectors = kBlock / kLanes;
  uint8_t* end = packed + packed_block(k) - 4 * kBlock;
  for (int v = 0; v < kVectors; ++v) {
    I32 sum = zero();
    for (const uint8_t* line = packed + v * 4 * kLanes; line < end; line += 4 * kBlock) {
      sum = dot4(sum, splat(1), load_bytes(line));
    }
    store(reinterpret_cast<int32_t*>(end) + v * kLanes, mul(sum, all(128)));
  }
}

inline void pack(const int8_t* w, int64_t stride, int64_t step, int64_t n, int64_t k, uint8_t* packed) {
  const uint8_t* from = reinterpret_cast<const uint8_t*>(w);
  const int64_t block = packed_block(k), written = step == 1 || stride == 1 ? round_up(k, 4) * kBlock : 0;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t begin = n - start < kBlock ? 0 : written;  // the last block may lack channels
    fill_bytes(packed + start / kBlock * block + begin, block - begin, 0);
  }
  const int64_t at_once = step != 1 && stride == 1 ? kWidth : kBlock;
  for (int64_t start = 0; start < n; start += at_once) {
    const int64_t count = n - start < at_once ? n - start : at_once;
    uint8_t* to = packed + start / kBlock * block;
    if (step == 1) {
      pack_rows(from + start * stride, stride, count, k, to);
    } else if (stride == 1) {
      pack_columns(from + start, step, count, k, to);
    } else {
      for (int64_t c = 0; c < count; ++c) {
        for (int64_t i = 0; i < k; ++i) to[(i / 4 * kBlock + c) * 4 + i % 4] = from[(start + c) * stride + i * step];
      }
    }
  }
  for (int64_t start = 0; start < n; start += kBlock) pack_sums(k, packed + start / kBlock * block);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
