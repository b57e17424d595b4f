// Sums and maxima of pixels: pools, and sums over consecutive rows.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// Adds rows of n <= kWidth bytes to accumulators in quad order.
inline void add_rows(const uint8_t* const* rows, int64_t count, int64_t n, I32 flip, I32* acc) {
  const I32 ones = splat(1);
  for (int64_t i = 0; i < count; i += 4) {
    I32 r[4], quad[4];
    JAXQ_UNROLL
    for (int k = 0; k < 4; ++k) {
      r[k] = i + k < count ? bit_xor(load_parts<1>(rows + i + k, n), flip) : zero();
    }
    interleave(r[0], r[1], r[2], r[3], quad);
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) acc[v] = dot4(acc[v], quad[v], ones);
  }
}

constexpr int64_t kRowsAtOnce = 64;

inline void sum(const Sum& s, const Epilogue& e, int64_t first, int64_t last) {
  const I32 flip = splat(flip_of(s.dtype));
  const I32 start = all(static_cast<int32_t>(correction_of(s.dtype) * 128 * s.terms));
  for (int64_t channel = 0; channel < s.channels; channel += kWidth) {
    const int64_t n = s.channels - channel < kWidth ? s.channels - channel : kWidth;
    const Quads<1> quads(e, channel, n);
    for (int64_t row = first; row < last; ++row) {
      I32 acc[4] = {start, start, start, start};
      const uint8_t* x = s.x + row * s.terms * s.stride + channel;
      for (int64_t begin = 0; begin < s.terms; begin += kRowsAtOnce) {
        const int64_t count = s.terms - begin < kRowsAtOnce ? s.terms - begin : kRowsAtOnce;
        const uint8_t* rows[kRowsAtOnce];
        for (int64_t i = 0; i < count; ++i) rows[i] = x + (begin + i) * s.stride;
        add_rows(rows, count, n, flip, acc);
      }
      quads.finish(acc, &row);
    }
    quads.look_up_rows(first, last - first);
  }
}

// The taps of one pixel of output that lie within the image.
struct Inside {
  const uint8_t* x;  // of the first
  int64_t rows, columns, row_step, column_step;

  Inside(const Window& w, int64_t image, int64_t line, int64_t column) {
    const int64_t top = line * w.stride_h - w.pad_top, left = column * w.stride_w - w.pad_left;
    const int64_t i = skipped(top, w.dilation_h), j = skipped(left, w.dilation_w);
    rows = within(top, w.dilation_h, w.kernel_h, w.height) - i;
    columns = within(left, w.dilation_w, w.kernel_w, w.width) - j;
    if (rows < 0) rows = 0;
    if (columns < 0) columns = 0;
    row_step = w.dilation_h * w.width * w.stride;
    column_step = w.dilation_w * w.stride;
    const int64_t y = top + i * w.dilation_h, at = left + j * w.dilation_w;
    x = rows && columns ? w.x + ((image * w.height + y) * w.width + at) * w.stride : w.x;
  }

  static int64_t skipped(int64_t start, int64_t dilation) { return start < 0 ? (-start + dilation - 1) / dilation : 0; }
  static int64_t within(int64_t start, int64_t dilation, int64_t kernel, int64_t size) {
    if (start >= size) return 0;
    const int64_t end = (size - start + dilation - 1) / dilation;
    return end < kernel ? end : kernel;
  }
};

inline void sum_pool(const Window& w, const Epilogue& e, int64_t first, int64_t last) {
  const I32 flip = splat(flip_of(w.dtype));
  for (int64_t channel = 0; channel < w.channels; channel += kWidth) {
    const int64_t n = w.channels - channel < kWidth ? w.channels - channel : kWidth;
    const Quads<1> quads(e, channel, n);
    for (int64_t line = first; line < last; ++line) {
      for (int64_t column = 0; column < w.out_width; ++column) {
        const Inside taps(w, line / w.out_height, line % w.out_height, column);
        const I32 start = all(static_cast<int32_t>(correction_of(w.dtype) * 128 * taps.rows * taps.columns));
        I32 acc[4] = {start, start, start, start};
        const uint8_t* rows[kRowsAtOnce];
        int64_t count = 0;
        for (int64_t i = 0; i < taps.rows; ++i) {
          for (int64_t j = 0; j < taps.columns; ++j) {
            rows[count++] = taps.x + i * taps.row_step + j * taps.column_step + channel;
            if (count == kRowsAtOnce) {
              add_rows(rows, count, n, flip, acc);
              count = 0;
            }
          }
        }
        add_rows(rows, count, n, flip, acc);
        const int64_t row = line * w.out_width + column;
        quads.finish(acc, &row);
      }
    }
    quads.look_up_rows(first * w.out_width, (last - first) * w.out_width);
  }
}

template <bool kSigned>
inline I32 larger(I32 a, I32 b) {
  return kSigned ? max_s8(a, b) : max_u8(a, b);
}

template <bool kSigned>
void max_pool_of(const Window& w, uint8_t* out, int64_t out_stride, int64_t first, int64_t last) {
  for (int64_t line = first; line < last; ++line) {
    for (int64_t column = 0; column < w.out_width; ++column) {
      const Inside taps(w, line / w.out_height, line % w.out_height, column);
      uint8_t* to = out + (line * w.out_width + column) * out_stride;
      for (int64_t channel = 0; channel < w.channels; channel += kWidth) {
        const int64_t n = w.channels - channel < kWidth ? w.channels - channel : kWidth;
        const uint8_t* x = taps.x + channel;
        I32 most = load_parts<1>(&x, n);
        for (int64_t i = 0; i < taps.rows; ++i) {
          const uint8_t* tap = x + i * taps.row_step;
          for (int64_t j = 0; j < taps.columns; ++j, tap += taps.column_step) {
            most = larger<kSigned>(most, load_parts<1>(&tap, n));
          }
        }
        uint8_t* at = to + channel;
        store_parts<1>(&at, most, n);
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
