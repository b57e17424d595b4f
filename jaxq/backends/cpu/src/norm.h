// Layer norm and RMS norm of rows of floats: the mean first, then the variance about it.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// The sum over n values of x - mean, or of its square.
template <bool kSquare>
inline float sum_about(const float* x, int64_t n, F32 mean) {
  F32 sums[2] = {all(0.0f), all(0.0f)};
  int64_t c = 0;
  for (; c + 2 * kLanes <= n; c += 2 * kLanes) {
    JAXQ_UNROLL
    for (int v = 0; v < 2; ++v) {
      const F32 y = sub(load(x + c + v * kLanes), mean);
      sums[v] = kSquare ? mul_add(y, y, sums[v]) : add(sums[v], y);
    }
  }
  for (; c < n; c += kLanes) {
    const int64_t count = n - c < kLanes ? n - c : kLanes;
    const F32 y = first_lanes(sub(load(x + c, count), mean), all(0.0f), count);
    sums[0] = kSquare ? mul_add(y, y, sums[0]) : add(sums[0], y);
  }
  return total(add(sums[0], sums[1]));
}

inline void layer_norm(const Rows& r, const float* scale, const float* bias, float epsilon, bool center,
                       float multiplier, int64_t first, int64_t last) {
  const Out out(r, multiplier);
  const float size = static_cast<float>(r.cols);
  for (int64_t row = first; row < last; ++row) {
    const float* x = reinterpret_cast<const float*>(r.x + row * r.x_stride);
    const F32 mean = all(center ? sum_about<false>(x, r.cols, all(0.0f)) / size : 0.0f);
    const float variance = sum_about<true>(x, r.cols, mean) / size;
    const F32 factor = all(1.0f / __builtin_sqrtf(variance + epsilon));
    for (int64_t c = 0; c < r.cols; c += 4 * kLanes) {
      const int64_t n = r.cols - c < 4 * kLanes ? r.cols - c : 4 * kLanes;
      F32 y[4], of_channel[4];
      load_floats(x + c, n, y);
      JAXQ_UNROLL
      for (int v = 0; v < 4; ++v) y[v] = mul(sub(y[v], mean), factor);
      if (scale) {
        load_floats(scale + c, n, of_channel);
        JAXQ_UNROLL
        for (int v = 0; v < 4; ++v) y[v] = mul(y[v], of_channel[v]);
      }
      if (bias) {
        load_floats(bias + c, n, of_channel);
        JAXQ_UNROLL
        for (int v = 0; v < 4; ++v) y[v] = add(y[v], of_channel[v]);
      }
      out.write(r.out + row * r.out_stride, c, y, n);
    }
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
