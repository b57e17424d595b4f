// Functions of one value: x * phi(x), with phi the normal distribution's, and x * sigmoid(a x + b x^3), of which gelu, its
// approximation with tanh, and silu are made.
//
// Of either the tail t(|x|) = phi(-|x|) or sigmoid(-|...|) is computed, in which no two numbers cancel: both functions are
// max(x, 0) - |x| t(|x|).
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// erfc(z) / 2 for z >= 0: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26. Its error is below 1e-7.
inline F32 half_erfc(F32 z) {
  const F32 t = div(all(1.0f), mul_add(all(0.3275911f), z, all(1.0f)));
  F32 p = all(0.5f * 1.061405429f);
  p = mul_add(p, t, all(0.5f * -1.453152027f));
  p = mul_add(p, t, all(0.5f * 1.421413741f));
  p = mul_add(p, t, all(0.5f * -0.284496736f));
  p = mul_add(p, t, all(0.5f * 0.254829592f));
  return mul(mul(p, t), exp_of_negative(sub(all(0.0f), mul(z, z))));
}

// x may be infinite; NaN stays.
inline F32 function_of(const Function& f, F32 x) {
  x = mul(x, all(f.input_factor));
  const F32 size = min(all(FLT_MAX), max(x, sub(all(0.0f), x)));
  F32 tail;
  if (f.kind == Function::normal) {
    tail = half_erfc(mul(size, all(0.70710678f)));
  } else {
    const F32 odd = mul(size, mul_add(all(f.cubic), mul(size, size), all(f.linear)));
    const F32 e = exp_of_negative(sub(all(0.0f), odd));
    tail = div(e, add(all(1.0f), e));
  }
  return mul(sub(max(all(0.0f), x), mul(size, tail)), all(f.factor));
}

inline void function(const Rows& r, const Function& f, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const float* x = reinterpret_cast<const float*>(r.x + row * r.x_stride);
    float* out = reinterpret_cast<float*>(r.out + row * r.out_stride);
    int64_t c = 0;
    for (; c + kLanes <= r.cols; c += kLanes) store(out + c, function_of(f, load(x + c)));
    if (c < r.cols) store(out + c, function_of(f, load(x + c, r.cols - c)), r.cols - c);
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
