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

// Taps of the kernel: `columns` x `groups` of 4 rows, the columns `step` bytes apart in the scratch.
struct Taps {
  int64_t columns, groups, step;
};

// kCount columns of a line of output.
template <int kCount, int kParts>
void depthwise_columns(const uint8_t* image, int64_t step, const uint8_t* weights, const Taps& taps, const I32* start,
                       const Quads<kParts>& quads, const int64_t* rows) {
  I32 acc[kCount][4];
  JAXQ_UNROLL
  for (int t = 0; t < kCount; ++t) {
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) acc[t][v] = start[v];
  }
  for (int64_t j = 0; j < taps.columns; ++j) {
    const uint8_t* x = image + j * taps.step;
    for (int64_t g = 0; g < taps.groups; ++g, x += kQuadBytes, weights += kQuadBytes) {
      JAXQ_UNROLL
      for (int v = 0; v < 4; ++v) {
        const I32 w = load_bytes(weights + v * kWidth);
        JAXQ_UNROLL
        for (int t = 0; t < kCount; ++t) acc[t][v] = dot4(acc[t][v], load_bytes(x + t * step + v * kWidth), w);
      }
    }
  }
  JAXQ_UNROLL
  for (int t = 0; t < kCount; ++t) {
    int64_t at[kParts];
    JAXQ_UNROLL
    for (int p = 0; p < kParts; ++p) at[p] = rows[p] < 0 ? -1 : rows[p] + t;
    quads.finish(acc[t], at);
  }
}

template <int kCount, int kParts>
void depthwise_line(const uint8_t* image, int64_t step, const uint8_t* weights, const Taps& taps, const I32* start,
                    const Quads<kParts>& quads, const int64_t* rows, int64_t column, int64_t columns) {
  for (; column + kCount <= columns; column += kCount) {
    int64_t at[kParts];
    JAXQ_UNROLL
    for (int p = 0; p < kParts; ++p) at[p] = rows[p] < 0 ? -1 : rows[p] + column;
    depthwise_columns<kCount, kParts>(image + column * step, step, weights, taps, start, quads, at);
  }
  if constexpr (kCount > 1) {
    if (column < columns) {
      depthwise_line<kCount / 2, kParts>(image, step, weights, taps, start, quads, rows, column, columns);
    }
  }
}

// How the bytes of this sign are brought to one that dot4 takes.
inline uint8_t flip_of(DType dtype) { return (dtype == DType::s8 ? kTakesSigned : kTakesUnsigned) ? 0 : 0x80; }
inline int32_t correction_of(DType dtype) { return !flip_of(dtype) ? 0 : dtype == DType::s8 ? -1 : 1; }

// n <= kWidth / kParts channels from `channel` on; `packed` starts with them.
template <int kParts>
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
  const I32 flip = splat(flip_of(w.dtype));
  const Quads<kParts> quads(e, channel, n);

  const uint8_t nothing[kWidth] = {};
  const uint8_t* row[4 * kMostGroups][kParts];
  int64_t inside[4 * kMostGroups][kParts];  // all ones, or 0: the row is outside of the image, all columns are the same
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
        inside[i][p] = is_inside ? -1 : 0;
      }
    }
    for (int64_t column = 0; column < w.out_width; column += columns_at_once) {
      const int64_t columns = w.out_width - column < columns_at_once ? w.out_width - column : columns_at_once;
      const int64_t left = column * w.stride_w - w.pad_left, width = (columns - 1) * w.stride_w + span;
      uint8_t* to = image;
      for (int64_t x = left; x < left + width; ++x) {
        if (x < 0 || x >= w.width) {
          for (int64_t i = 0; i < groups * 4; ++i, to += kWidth) put_bytes(to, flip);
          continue;
        }
        const int64_t offset = x * w.stride;
        for (int64_t g = 0; g < groups; ++g, to += kQuadBytes) {
          I32 r[4], quad[4];
          for (int64_t i = 0; i < 4; ++i) {
            const uint8_t* parts[kParts];
            JAXQ_UNROLL
            for (int p = 0; p < kParts; ++p) parts[p] = row[g * 4 + i][p] + (offset & inside[g * 4 + i][p]);
            r[i] = bit_xor(load_parts<kParts>(parts, n), flip);
          }
          interleave(r[0], r[1], r[2], r[3], quad);
          JAXQ_UNROLL
          for (int v = 0; v < 4; ++v) put_bytes(to + v * kWidth, quad[v]);
        }
      }
      for (int64_t l = 0; l < part_lines; ++l) {
        int64_t at[kParts];
        JAXQ_UNROLL
        for (int p = 0; p < kParts; ++p) {
          at[p] = p * part_lines + l < count ? (line + p * part_lines + l) * w.out_width + column : -1;
        }
        const Taps shape = {w.kernel_w, groups, w.dilation_w * column_bytes};
        depthwise_line<kColumns, kParts>(image, w.stride_w * column_bytes, weights + l * taps * kQuadBytes, shape, start,
                                         quads, at, 0, columns);
      }
    }
    quads.look_up_rows(line * w.out_width, count * w.out_width);
    line += count;
  }
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

inline void depthwise(const Window& w, const uint8_t* packed, const Epilogue& e, int64_t first, int64_t last) {
  if (first >= last) return;
  const int64_t groups = round_up(w.kernel_h, 4) / 4, taps = w.kernel_w * groups;
  const int64_t span = (w.kernel_w - 1) * w.dilation_w + 1;
  const bool large = groups > kMostGroups || taps * kQuadBytes > kWeightScratch || span * groups * kQuadBytes > kImageScratch;
  for (int64_t channel = 0; channel < w.channels; channel += 64, packed += 256 * (taps + 1)) {
    const int64_t rest = w.channels - channel < 64 ? w.channels - channel : 64;
    if (large) {
      depthwise_large(w, packed, channel, rest, e, first, last);
      continue;
    }
    for (int64_t c = 0; c < rest; c += kWidth) {
      const int64_t n = rest - c < kWidth ? rest - c : kWidth;
      const uint8_t* from = packed + c / 16 * 16;
      if constexpr (kWidth >= 64) {
        if (n <= 16) {
          depthwise_block<4>(w, from, channel + c, n, e, first, last);
          continue;
        }
      }
      if constexpr (kWidth >= 32) {
        if (n <= kWidth / 2) {
          depthwise_block<2>(w, from, channel + c, n, e, first, last);
          continue;
        }
      }
      depthwise_block<1>(w, from, channel + c, n, e, first, last);
    }
  }
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
