// Rows to rows, value by value.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

constexpr int64_t kRowBlock = 32;  // rows that share what is loaded for their channels

// The accumulators of an elementwise operation, rows counted from `first`.
template <bool kHasY>
struct Products {
  const Elementwise& op;
  int64_t first;

  template <bool kFull>
  I32 get(int64_t row, int64_t channel, int64_t n) const {
    row += first;
    const I32 x = widened<kFull>(op.x + row * op.x_stride + channel, op.x_dtype, n);
    if constexpr (!kHasY) return x;
    if (op.y_repeat != 1) row /= op.y_repeat;
    if (row >= op.y_period) row %= op.y_period;
    const uint8_t* y = op.y + row * op.y_stride;
    if (op.y_step) return mul(x, widened<kFull>(y + channel, op.y_dtype, n));
    return mul(x, all(op.y_dtype == DType::s8 ? static_cast<int32_t>(*reinterpret_cast<const int8_t*>(y)) : *y));
  }
};

inline void elementwise(const Elementwise& op, const Epilogue& e, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; row += kRowBlock) {
    const int64_t rows = last - row < kRowBlock ? last - row : kRowBlock;
    if (op.y) {
      finish(Products<true>{op, row}, e, row, rows, 0, op.channels);
    } else {
      finish(Products<false>{op, row}, e, row, rows, 0, op.channels);
    }
  }
}

inline void table(const Rows& r, const uint8_t* entries, int64_t first, int64_t last) {
  const uint8_t* from = r.x + first * r.x_stride;
  uint8_t* to = r.out + first * r.out_stride;
  if (r.x_stride == r.cols && r.out_stride == r.cols) {
    look_up(to, 0, from, 0, 1, (last - first) * r.cols, entries);
  } else {
    look_up(to, r.out_stride, from, r.x_stride, last - first, r.cols, entries);
  }
}

// Rows that follow one another without a gap, where all columns are alike, as one long row.
inline Rows joined(const Rows& r, int64_t step, int64_t* first, int64_t* last) {
  Rows rows = r;
  if (step || r.x_stride != r.cols * size_of(r.x_dtype) || r.out_stride != r.cols * size_of(r.out_dtype)) return rows;
  rows.x += *first * r.x_stride;
  rows.out += *first * r.out_stride;
  rows.cols = (*last - *first) * r.cols;
  *last = *last > *first ? 1 : 0;
  *first = 0;
  return rows;
}

// 4 vectors of floats, each times a multiplier, to bytes. kTame: no product is negative, or beyond kLargest.
template <bool kSigned, bool kTame = false>
inline I32 quantized(const F32* x, const F32* multiplier) {
  I32 q[4];
  JAXQ_UNROLL
  for (int v = 0; v < 4; ++v) {
    const F32 y = mul(x[v], multiplier[v]);
    q[v] = round(kTame ? max(y, all(0.0f)) : min(zero_where_nan(y), all(kLargest)));  // NaN to 0 by either
  }
  if constexpr (kSigned && kTame) return in_order(quads_to_s8(q[0], q[1], q[2], q[3]));
  if constexpr (kSigned) return max_s8(in_order(quads_to_s8(q[0], q[1], q[2], q[3])), splat(0x81));  // -127
  return in_order(quads_to_u8(q[0], q[1], q[2], q[3]));
}

// n <= 4 * kLanes values to bytes.
template <bool kSigned, bool kTame = false>
inline void store_quantized(uint8_t* to, const F32* x, const F32* multiplier, int64_t n) {
  if (n == 4 * kLanes) return put_bytes(to, quantized<kSigned, kTame>(x, multiplier));
  put_bytes(to, quantized<kSigned, kTame>(x, multiplier), n);
}

// n values, those beyond it 0.
inline void load_floats(const float* p, int64_t n, F32* x) {
  JAXQ_UNROLL
  for (int v = 0; v < 4; ++v) {
    const int64_t count = n - v * kLanes;
    x[v] = count >= kLanes ? load(p + v * kLanes) : count > 0 ? load(p + v * kLanes, count) : all(0.0f);
  }
}

template <bool kSigned>
void quantize_rows(const Rows& r, const float* multiplier, int64_t step, int64_t first, int64_t last) {
  F32 factor[4] = {all(*multiplier), all(*multiplier), all(*multiplier), all(*multiplier)};
  for (int64_t row = first; row < last; ++row) {
    const float* x = reinterpret_cast<const float*>(r.x + row * r.x_stride);
    uint8_t* out = r.out + row * r.out_stride;
    for (int64_t c = 0; c < r.cols; c += 4 * kLanes) {
      const int64_t n = r.cols - c < 4 * kLanes ? r.cols - c : 4 * kLanes;
      F32 values[4];
      load_floats(x + c, n, values);
      if (step) load_floats(multiplier + c, n, factor);
      store_quantized<kSigned>(out + c, values, factor, n);
    }
  }
}

inline void quantize(const Rows& r, const float* multiplier, int64_t step, int64_t first, int64_t last) {
  const Rows rows = joined(r, step, &first, &last);
  if (r.out_dtype == DType::s8) return quantize_rows<true>(rows, multiplier, step, first, last);
  quantize_rows<false>(rows, multiplier, step, first, last);
}

inline void dequantize(const Rows& r, const float* scale, int64_t step, int64_t first, int64_t last) {
  const Rows rows = joined(r, step, &first, &last);
  F32 factor = all(*scale);
  for (int64_t row = first; row < last; ++row) {
    const uint8_t* x = rows.x + row * rows.x_stride;
    float* out = reinterpret_cast<float*>(rows.out + row * rows.out_stride);
    for (int64_t c = 0; c < rows.cols; c += kLanes) {
      const int64_t n = rows.cols - c < kLanes ? rows.cols - c : kLanes;
      if (step) factor = load(scale + c, n);
      const I32 q = rows.x_dtype == DType::s8 ? widen_s8(x + c, n) : widen_u8(x + c, n);
      store(out + c, mul(to_float(q), factor), n);
    }
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
