// Depthwise convolution: the 4-way dot product over 4 rows of the image at a time.
//
// The rows that some lines of output need are interleaved once, column by column, into a scratch; every column serves
// all taps of the kernel that see it, and all of these lines, for which the weights are moved down by some rows. Where
// fewer channels are left than a vector has, its parts are at work on different lines.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

constexpr int64_t kQuadBytes = 4 * kWidth;  // 4 vectors: kWidth channels of 4 rows
constexpr int64_t kImageScratch = 32768, kWeightScratch = 16384, kMostGroups = 16, kMostLines = 4;

// Taps of the kernel, 4 rows each, in the scratch: `runs` of `length` that lie one after another, `step` bytes apart.
struct Taps {
  int64_t runs, length, step;
};

// kCount columns of kLines lines of output, which read the same pixels with weights `next` bytes apart.
template <int kCount, int kLines, int kParts, bool kFull>
void depthwise_columns(const uint8_t* image, int64_t step, const uint8_t* weights, int64_t next, const Taps& taps,
                       const I32* start, const Quads<kParts, kFull>& quads, const Target<kParts>* targets,
                       int64_t column) {
  Vectors<kLines * kCount * 4> acc;
  each<kLines * kCount * 4>([&](auto i) JAXQ_INLINE { at<i.value>(acc) = start[i.value % 4]; });
  for (int64_t j = 0; j < taps.runs; ++j) {
    const uint8_t* x = image + j * taps.step;
    for (int64_t i = 0; i < taps.length; ++i, x += kQuadBytes, weights += kQuadBytes) {
      each<4>([&](auto v) JAXQ_INLINE {
        Vectors<kLines> w;
        each<kLines>([&](auto l) JAXQ_INLINE {
          at<l.value>(w) = load_bytes(weights + l.value * next + v.value * kWidth);
          keep(at<l.value>(w));
        });
        each<kCount>([&](auto t) JAXQ_INLINE {
          const I32 pixel = load_bytes(x + t.value * step + v.value * kWidth);
          each<kLines>([&](auto l) JAXQ_INLINE {
            I32& sum = at<(l.value * kCount + t.value) * 4 + v.value>(acc);
            sum = dot4(sum, pixel, at<l.value>(w));
          });
        });
      });
    }
  }
  quads.template finish<kCount, kLines>(acc, targets, column);
}

// From `column` on: kCount columns at a time, then those that are left.
template <int kCount, int kLines, int kParts, bool kFull>
void depthwise_lines(const uint8_t* image, int64_t step, const uint8_t* weights, int64_t next, const Taps& taps,
                     const I32* start, const Quads<kParts, kFull>& quads, const Target<kParts>* targets, int64_t column,
                     int64_t columns) {
  for (; column + kCount <= columns; column += kCount) {
    depthwise_columns<kCount, kLines, kParts, kFull>(image + column * step, step, weights, next, taps, start, quads, targets,
                                                     column);
  }
  if constexpr (kCount > 1) {
    if (column < columns) {
      depthwise_lines<kCount - 1, kLines, kParts, kFull>(image, step, weights, next, taps, start, quads, targets, column,
                                                         columns);
    }
  }
}

// How the bytes of this sign are brought to one that dot4 takes.
inline uint8_t flip_of(DType dtype) { return (dtype == DType::s8 ? kTakesSigned : kTakesUnsigned) ? 0 : 0x80; }
inline int32_t correction_of(DType dtype) { return !flip_of(dtype) ? 0 : dtype == DType::s8 ? -1 : 1; }

// Columns [begin, end) of 4 rows, of which the first is column `left` of the image.
template <int kParts, bool kFull>
JAXQ_INLINE inline void interleave_line(const uint8_t* const (*row)[kParts], const int64_t (*step)[kParts],
                                        int64_t left, int64_t begin, int64_t end, int64_t n, I32 flip, uint8_t* to,
                                        int64_t column_bytes) {
  const int64_t count = kFull ? kWidth / kParts : n;
  const uint8_t* from[4][kParts];
  JAXQ_UNROLL
  for (int i = 0; i < 4; ++i) {
    JAXQ_UNROLL
    for (int p = 0; p < kParts; ++p) from[i][p] = row[i][p] + (left + begin) * step[i][p];
  }
  to += begin * column_bytes;
  for (int64_t x = begin; x < end; ++x, to += column_bytes) {
    I32 r[4], quad[4];
    JAXQ_UNROLL
    for (int i = 0; i < 4; ++i) {
      r[i] = bit_xor(load_parts<kParts>(from[i], count), flip);
      JAXQ_UNROLL
      for (int p = 0; p < kParts; ++p) from[i][p] += step[i][p];
    }
    interleave(r[0], r[1], r[2], r[3], quad);
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) put_bytes(to + v * kWidth, quad[v]);
  }
}

// n <= kWidth / kParts channels from `channel` on, exactly so many if kFull; `packed` starts with them.
template <int kParts, bool kFull>
void depthwise_block(const Window& w, const uint8_t* packed, int64_t channel, int64_t n, const Epilogue& e,
                     int64_t first, int64_t last) {
  const int64_t groups = round_up(w.kernel_h, 4) / 4, taps = w.kernel_w * groups;
  const int64_t column_bytes = groups * kQuadBytes, span = (w.kernel_w - 1) * w.dilation_w + 1;
  const int64_t columns_at_once = (kImageScratch / column_bytes - span) / w.stride_w + 1;
  // Further lines of output see the same rows, where the weights have room to move down.
  int64_t lines = w.dilation_h == 1 ? 1 + (groups * 4 - w.kernel_h) / w.stride_h : 1;
  if (lines > kMostLines) lines = kMostLines;
  while (lines > 1 && lines * taps * kQuadBytes > kWeightScratch) --lines;
  if (lines * kParts > last - first) lines = (last - first + kParts - 1) / kParts;

  alignas(64) uint8_t weights[kWeightScratch], image[kImageScratch];
  for (int64_t l = 0; l < lines; ++l) {
    const int bits = static_cast<int>(l * w.stride_h * 8);
    for (int64_t j = 0; j < w.kernel_w; ++j) {
      I32 before[4] = {zero(), zero(), zero(), zero()};
      for (int64_t g = 0; g < groups; ++g) {
        uint8_t* to = weights + ((l * w.kernel_w + j) * groups + g) * kQuadBytes;
        JAXQ_UNROLL
        for (int v = 0; v < 4; ++v) {
          const uint8_t* from = packed + ((j * groups + g) * 4 + v) * 64;
          const uint8_t* parts[kParts];
          JAXQ_UNROLL
          for (int p = 0; p < kParts; ++p) parts[p] = from;
          const I32 x = load_parts<kParts>(parts, kWidth / kParts);
          put_bytes(to + v * kWidth, bits ? bit_or(shift_left(x, bits), shift_right(before[v], 32 - bits)) : x);
          before[v] = x;
        }
      }
    }
  }
  I32 start[4];
  JAXQ_UNROLL
  for (int v = 0; v < 4; ++v) {
    const uint8_t* parts[kParts];
    JAXQ_UNROLL
    for (int p = 0; p < kParts; ++p) parts[p] = packed + (taps * 4 + v) * 64;
    start[v] = mul(load_parts<kParts>(parts, kWidth / kParts), all(correction_of(w.dtype)));
  }
  const bool together = w.dilation_w == 1;
  const Taps runs = {together ? 1 : w.kernel_w, together ? taps : groups, w.dilation_w * column_bytes};
  const I32 flip = splat(flip_of(w.dtype));
  const Quads<kParts, kFull> quads(e, channel, n);

  const uint8_t nothing[kWidth] = {};
  const uint8_t* row[4 * kMostGroups][kParts];
  int64_t step[4 * kMostGroups][kParts];  // of a pixel; 0 for a row outside of the image
  for (int64_t line = first; line < last;) {
    const int64_t number = line / w.out_height, y = line % w.out_height;
    int64_t count = lines * kParts;
    if (count > w.out_height - y) count = w.out_height - y;
    if (count > last - line) count = last - line;
    const int64_t part_lines = (count + kParts - 1) / kParts;  // of output, for each part
    const int64_t rows = w.kernel_h + (part_lines - 1) * w.stride_h;
    for (int64_t i = 0; i < groups * 4; ++i) {
      for (int64_t p = 0; p < kParts; ++p) {
        const int64_t at = (y + p * part_lines) * w.stride_h - w.pad_top + i * w.dilation_h;
        const bool is_inside = i < rows && p * part_lines < count && at >= 0 && at < w.height;
        row[i][p] = is_inside ? w.x + (number * w.height + at) * w.width * w.stride + channel : nothing;
        step[i][p] = is_inside ? w.stride : 0;
      }
    }
    for (int64_t column = 0; column < w.out_width; column += columns_at_once) {
      const int64_t columns = w.out_width - column < columns_at_once ? w.out_width - column : columns_at_once;
      const int64_t left = column * w.stride_w - w.pad_left, width = (columns - 1) * w.stride_w + span;
      const int64_t begin = left < 0 ? (-left < width ? -left : width) : 0;
      const int64_t end = w.width - left < width ? w.width - left : width;
      fill_bytes(image, begin * column_bytes, flip_of(w.dtype));
      for (int64_t g = 0; g < groups; ++g) {
        interleave_line<kParts, kFull>(row + 4 * g, step + 4 * g, left, begin, end, n, flip, image + g * kQuadBytes,
                                       column_bytes);
      }
      if (end < width) {
        const int64_t from = end < begin ? begin : end;
        fill_bytes(image + from * column_bytes, (width - from) * column_bytes, flip_of(w.dtype));
      }
      const int64_t next = taps * kQuadBytes, pixel = w.stride_w * column_bytes;
      for (int64_t l = 0; l < part_lines; l += 2) {
        Target<kParts> targets[2];
        for (int64_t i = 0; i < 2; ++i) {
          for (int p = 0; p < kParts; ++p) {
            const bool exists = l + i < part_lines && p * part_lines + l + i < count;
            targets[i].row[p] = exists ? (line + p * part_lines + l + i) * w.out_width + column : -1;
          }
        }
        if (l + 1 < part_lines) {
          depthwise_lines<kColumnsOfTwo, 2, kParts, kFull>(image, pixel, weights + l * next, next, runs, start, quads, targets,
                                                           0, columns);
        } else {
          depthwise_lines<kColumns, 1, kParts, kFull>(image, pixel, weights + l * next, next, runs, start, quads, targets, 0,
                                                      columns);
        }
      }
    }
    quads.look_up_rows(line * w.out_width, count * w.out_width);
    line += count;
  }
}

template <int kParts>
inline void depthwise_of(const Window& w, const uint8_t* packed, int64_t channel, int64_t n, const Epilogue& e,
                         int64_t first, int64_t last) {
  if (n == kWidth / kParts) return depthwise_block<kParts, true>(w, packed, channel, n, e, first, last);
  depthwise_block<kParts, false>(w, packed, channel, n, e, first, last);
}

// Kernels too large for the scratch.
inline void depthwise_large(const Window& w, const uint8_t* packed, int64_t channel, int64_t n, const Epilogue& e,
                            int64_t first, int64_t last) {
  const int64_t groups = round_up(w.kernel_h, 4) / 4;
  for (int64_t row = first * w.out_width; row < last * w.out_width; ++row) {
    const int64_t column = row % w.out_width, line = row / w.out_width % w.out_height;
    const int64_t number = row / w.out_width / w.out_height;
    int32_t acc[64] = {};
    for (int64_t i = 0; i < w.kernel_h; ++i) {
      const int64_t y = line * w.stride_h - w.pad_top + i * w.dilation_h;
      if (y < 0 || y >= w.height) continue;
      for (int64_t j = 0; j < w.kernel_w; ++j) {
        const int64_t x = column * w.stride_w - w.pad_left + j * w.dilation_w;
        if (x < 0 || x >= w.width) continue;
        const uint8_t* pixel = w.x + ((number * w.height + y) * w.width + x) * w.stride + channel;
        const int8_t* weights = reinterpret_cast<const int8_t*>(packed) + (j * groups + i / 4) * 256 + i % 4;
        for (int64_t c = 0; c < n; ++c) {
          const int32_t value = w.dtype == DType::s8 ? static_cast<int8_t>(pixel[c]) : static_cast<int32_t>(pixel[c]);
          acc[c] += value * weights[(c / 4 % 4 * 16 + c / 16 * 4 + c % 4) * 4];
        }
      }
    }
    epilogue(acc, 64, e, row, 1, channel, n);
  }
}

inline bool is_large(const Window& w) {
  const int64_t groups = round_up(w.kernel_h, 4) / 4, span = (w.kernel_w - 1) * w.dilation_w + 1;
  return groups > kMostGroups || w.kernel_w * groups * kQuadBytes > kWeightScratch ||
         span * groups * kQuadBytes > kImageScratch;
}

// All channels; the weights of 64 of them lie `next` bytes behind the 64 before.
inline void depthwise_blocks(const Window& w, const uint8_t* packed, int64_t next, const Epilogue& e, int64_t first,
                             int64_t last) {
  const bool large = is_large(w);
  for (int64_t channel = 0; channel < w.channels; channel += 64, packed += next) {
    const int64_t rest = w.channels - channel < 64 ? w.channels - channel : 64;
    if (large) {
      depthwise_large(w, packed, channel, rest, e, first, last);
      continue;
    }
    for (int64_t c = 0; c < rest; c += kWidth) {
      const int64_t n = rest - c < kWidth ? rest - c : kWidth;
      if constexpr (kWidth >= 64) {
        if (n <= 16) {
          depthwise_of<4>(w, packed + c, channel + c, n, e, first, last);
          continue;
        }
      }
      if constexpr (kWidth >= 32) {
        if (n <= kWidth / 2) {
          depthwise_of<2>(w, packed + c, channel + c, n, e, first, last);
          continue;
        }
      }
      depthwise_of<1>(w, packed + c, channel + c, n, e, first, last);
    }
  }
}

inline void depthwise(const Window& w, const uint8_t* packed, const Epilogue& e, int64_t first, int64_t last) {
  const int64_t taps = w.kernel_w * (round_up(w.kernel_h, 4) / 4);
  if (first < last) depthwise_blocks(w, packed, 256 * (taps + 1), e, first, last);
}

inline void pack_depthwise(const int8_t* w, int64_t kernel_h, int64_t kernel_w, int64_t channels, uint8_t* packed) {
  fill_bytes(packed, depthwise_size(kernel_h, kernel_w, channels), 0);
  const int64_t groups = round_up(kernel_h, 4) / 4, block = 256 * (kernel_w * groups + 1);
  for (int64_t c = 0; c < channels; ++c) {
    uint8_t* to = packed + c / 64 * block;
    const int64_t lane = c / 4 % 4 * 16 + c % 64 / 16 * 4 + c % 4;  // quad order
    int32_t sum = 0;
    for (int64_t i = 0; i < kernel_h; ++i) {
      for (int64_t j = 0; j < kernel_w; ++j) {
        const int8_t value = w[(i * kernel_w + j) * channels + c];
        to[(j * groups + i / 4) * 256 + lane * 4 + i % 4] = static_cast<uint8_t>(value);
        sum += value;
      }
    }
    reinterpret_cast<int32_t*>(to + block - 256)[lane] = 128 * sum;
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
