// Sums and maxima of pixels: pools, and sums over consecutive rows.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// Adds `count` rows of n <= kWidth bytes (exactly so many if kFull), `stride` apart, to accumulators in quad order.
template <bool kFull>
JAXQ_INLINE inline void add_rows(const uint8_t* x, int64_t stride, int64_t count, int64_t n, I32 flip, Vectors<4>& acc) {
  const I32 ones = splat(1);
  const int64_t size = kFull ? kWidth : n;
  I32 r[4], quad[4];
  int64_t i = 0;
  for (; i + 4 <= count; i += 4, x += 4 * stride) {
    const uint8_t* const rows[4] = {x, x + stride, x + 2 * stride, x + 3 * stride};
    JAXQ_UNROLL
    for (int k = 0; k < 4; ++k) r[k] = bit_xor(load_parts<1>(rows + k, size), flip);
    interleave(r[0], r[1], r[2], r[3], quad);
    each<4>([&](auto v) JAXQ_INLINE { at<v.value>(acc) = dot4(at<v.value>(acc), quad[v.value], ones); });
  }
  for (; i < count; ++i, x += stride) {
    const uint8_t* const row = x;
    interleave(bit_xor(load_parts<1>(&row, size), flip), zero(), zero(), zero(), quad);
    each<4>([&](auto v) JAXQ_INLINE { at<v.value>(acc) = dot4(at<v.value>(acc), quad[v.value], ones); });
  }
}

// kWidth channels, or those that are left.
template <bool kFull>
void sum_block(const Sum& s, const Epilogue& e, int64_t first, int64_t last, int64_t channel, int64_t n) {
  const I32 flip = splat(flip_of(s.dtype));
  const I32 start = all(static_cast<int32_t>(correction_of(s.dtype) * 128 * s.terms));
  const Quads<1, kFull> quads(e, channel, n);
  for (int64_t row = first; row < last; ++row) {
    Vectors<4> acc;
    each<4>([&](auto v) JAXQ_INLINE { at<v.value>(acc) = start; });
    add_rows<kFull>(s.x + row * s.terms * s.stride + channel, s.stride, s.terms, n, flip, acc);
    const Target<1> target = {{row}};
    quads.template finish<1, 1>(acc, &target, 0);
  }
  quads.look_up_rows(first, last - first);
}

inline void sum(const Sum& s, const Epilogue& e, int64_t first, int64_t last) {
  int64_t channel = 0;
  for (; channel + kWidth <= s.channels; channel += kWidth) sum_block<true>(s, e, first, last, channel, kWidth);
  if (channel < s.channels) sum_block<false>(s, e, first, last, channel, s.channels - channel);
}

// The taps of one line, or one column, of output that lie within the image: the first of them and how many.
struct Inside {
  int64_t at, count;

  Inside(int64_t number, int64_t stride, int64_t pad, int64_t kernel, int64_t dilation, int64_t size) {
    const int64_t start = number * stride - pad;
    const int64_t skipped = start >= 0 ? 0 : dilation == 1 ? -start : (-start + dilation - 1) / dilation;
    int64_t end = start >= size ? 0 : dilation == 1 ? size - start : (size - start + dilation - 1) / dilation;
    if (end > kernel) end = kernel;
    at = start + skipped * dilation;
    count = end > skipped ? end - skipped : 0;
  }
};

inline Inside inside_line(const Window& w, int64_t line) {
  return Inside(line % w.out_height, w.stride_h, w.pad_top, w.kernel_h, w.dilation_h, w.height);
}
inline Inside inside_column(const Window& w, int64_t column) {
  return Inside(column, w.stride_w, w.pad_left, w.kernel_w, w.dilation_w, w.width);
}
inline const uint8_t* line_of(const Window& w, int64_t line, const Inside& rows) {
  return w.x + (line / w.out_height * w.height + rows.at) * w.width * w.stride;
}

// Of large windows.
template <bool kFull>
void sum_pool_block(const Window& w, const Epilogue& e, int64_t first, int64_t last, int64_t channel, int64_t n) {
  const I32 flip = splat(flip_of(w.dtype));
  const Quads<1, kFull> quads(e, channel, n);
  for (int64_t line = first; line < last; ++line) {
    const Inside rows = inside_line(w, line);
    for (int64_t column = 0; column < w.out_width; ++column) {
      const Inside columns = inside_column(w, column);
      const I32 start = all(static_cast<int32_t>(correction_of(w.dtype) * 128 * rows.count * columns.count));
      Vectors<4> acc;
      each<4>([&](auto v) JAXQ_INLINE { at<v.value>(acc) = start; });
      if (columns.count) {
        const uint8_t* x = line_of(w, line, rows) + columns.at * w.stride + channel;
        for (int64_t i = 0; i < rows.count; ++i, x += w.dilation_h * w.width * w.stride) {
          add_rows<kFull>(x, w.dilation_w * w.stride, columns.count, n, flip, acc);
        }
      }
      const Target<1> target = {{line * w.out_width + column}};
      quads.template finish<1, 1>(acc, &target, 0);
    }
  }
  quads.look_up_rows(first * w.out_width, (last - first) * w.out_width);
}

// Of small windows: a depthwise convolution with ones.
inline bool sum_pool_as_convolution(const Window& w, const Epilogue& e, int64_t first, int64_t last) {
  constexpr int64_t kMostTaps = 32;  // of 4 rows
  const int64_t groups = round_up(w.kernel_h, 4) / 4, taps = w.kernel_w * groups;
  if (taps > kMostTaps || is_large(w)) return false;
  alignas(64) uint8_t packed[(kMostTaps + 1) * 256];
  for (int64_t i = 0; i < taps * 256; ++i) packed[i] = i / 256 % groups * 4 + i % 4 < w.kernel_h ? 1 : 0;
  int32_t* sums = reinterpret_cast<int32_t*>(packed + taps * 256);
  for (int64_t i = 0; i < 64; ++i) sums[i] = static_cast<int32_t>(128 * w.kernel_h * w.kernel_w);
  depthwise_blocks(w, packed, 0, e, first, last);
  return true;
}

inline void sum_pool(const Window& w, const Epilogue& e, int64_t first, int64_t last) {
  if (first >= last || sum_pool_as_convolution(w, e, first, last)) return;
  int64_t channel = 0;
  for (; channel + kWidth <= w.channels; channel += kWidth) sum_pool_block<true>(w, e, first, last, channel, kWidth);
  if (channel < w.channels) sum_pool_block<false>(w, e, first, last, channel, w.channels - channel);
}

template <bool kSigned>
JAXQ_INLINE inline I32 larger(I32 a, I32 b) {
  return kSigned ? max_s8(a, b) : max_u8(a, b);
}

// The largest of rows x columns pixels, n <= kWidth channels, exactly so many if kFull.
template <bool kSigned, bool kFull>
JAXQ_INLINE inline I32 largest_of(const uint8_t* x, int64_t rows, int64_t columns, int64_t row_step, int64_t column_step,
                                  int64_t n) {
  const int64_t size = kFull ? kWidth : n;
  I32 most = load_parts<1>(&x, size);
  if (columns == 3) {
    for (int64_t i = 0; i < rows; ++i, x += row_step) {
      const uint8_t* const taps[3] = {x, x + column_step, x + 2 * column_step};
      const I32 two = larger<kSigned>(load_parts<1>(taps + 1, size), load_parts<1>(taps + 2, size));
      most = larger<kSigned>(most, larger<kSigned>(two, load_parts<1>(taps, size)));
    }
    return most;
  }
  for (int64_t i = 0; i < rows; ++i, x += row_step) {
    const uint8_t* tap = x;
    for (int64_t j = 0; j < columns; ++j, tap += column_step) most = larger<kSigned>(most, load_parts<1>(&tap, size));
  }
  return most;
}

template <bool kSigned>
void max_pool_of(const Window& w, uint8_t* out, int64_t out_stride, int64_t first, int64_t last) {
  const int64_t row_step = w.dilation_h * w.width * w.stride, column_step = w.dilation_w * w.stride;
  for (int64_t line = first; line < last; ++line) {
    const Inside rows = inside_line(w, line);
    const uint8_t* from = line_of(w, line, rows);
    uint8_t* to = out + line * w.out_width * out_stride;
    for (int64_t column = 0; column < w.out_width; ++column, to += out_stride) {
      const Inside columns = inside_column(w, column);
      const uint8_t* x = from + columns.at * w.stride;
      int64_t c = 0;
      for (; c + kWidth <= w.channels; c += kWidth) {
        put_bytes(to + c, largest_of<kSigned, true>(x + c, rows.count, columns.count, row_step, column_step, kWidth));
      }
      if (c < w.channels) {
        const int64_t n = w.channels - c;
        put_bytes(to + c, largest_of<kSigned, false>(x + c, rows.count, columns.count, row_step, column_step, n), n);
      }
    }
  }
}

inline void max_pool(const Window& w, uint8_t* out, int64_t out_stride, int64_t first, int64_t last) {
  if (w.dtype == DType::s8) return max_pool_of<true>(w, out, out_stride, first, last);
  max_pool_of<false>(w, out, out_stride, first, last);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
