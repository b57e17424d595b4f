// Rows of floats, or of a function of them, to int8, each by a scale of its own: numerics.row_scale and quantize_rows.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

constexpr float kSmallestAmax = 1e-20f;  // numerics.SMALLEST_AMAX

// n <= 4 * kLanes values from column c on, times their channels' factors.
template <bool kHasFactor>
JAXQ_INLINE inline void load_factored(const float* x, const float* factor, int64_t c, int64_t n, F32* y) {
  load_floats(x + c, n, y);
  if constexpr (kHasFactor) {
    F32 f[4];
    load_floats(factor + c, n, f);
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) y[v] = mul(y[v], f[v]);
  }
}

template <bool kHasFactor>
float scale_of_row(const float* x, const float* factor, int64_t cols) {
  F32 most[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)}, y[4];
  for (int64_t c = 0; c < cols; c += 4 * kLanes) {
    load_factored<kHasFactor>(x, factor, c, cols - c < 4 * kLanes ? cols - c : 4 * kLanes, y);
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) {
      const F32 number = zero_where_nan(y[v]);
      most[v] = max(most[v], max(number, sub(all(0.0f), number)));
    }
  }
  const float amax = largest(max(max(most[0], most[1]), max(most[2], most[3])));
  return (amax < kSmallestAmax ? kSmallestAmax : amax > FLT_MAX ? FLT_MAX : amax) * (1.0f / 127.0f);
}

template <bool kHasFactor>
void quantize_rows_by(const Rows& r, const float* factor, const Function* f, float* made, float* scales, int64_t first,
                      int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const float* x = reinterpret_cast<const float*>(r.x + row * r.x_stride);
    uint8_t* out = r.out + row * r.out_stride;
    if (f) {
      Rows one = r;
      one.x += row * r.x_stride;
      one.out = reinterpret_cast<uint8_t*>(made);
      function(one, *f, 0, 1);
      x = made;
    }
    const float scale = scales[row] = scale_of_row<kHasFactor>(x, factor, r.cols);
    const F32 inverse = all(1.0f / scale), multiplier[4] = {inverse, inverse, inverse, inverse};
    for (int64_t c = 0; c < r.cols; c += 4 * kLanes) {
      const int64_t n = r.cols - c < 4 * kLanes ? r.cols - c : 4 * kLanes;
      F32 y[4];
      load_factored<kHasFactor>(x, factor, c, n, y);
      store_quantized<true>(out + c, y, multiplier, n);
    }
  }
}

inline void quantize_rows(const Rows& r, const float* factor, const Function* f, float* made, float* scales,
                          int64_t first, int64_t last) {
  if (factor) return quantize_rows_by<true>(r, factor, f, made, scales, first, last);
  quantize_rows_by<false>(r, factor, f, made, scales, first, last);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
