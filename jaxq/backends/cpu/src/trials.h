// What calibration's "auto" measures with (jaxq/calibration/trials.py), over a range of the values.
#pragma once
#include <algorithm>
#include <cstdint>

namespace jaxq {

// numerics.quantize and dequantize: out = scale * round(clip(x / scale)), NaN to 0, in the same bits.
inline void quantized(const float* x, int64_t n, float scale, float lo, float hi, float* out) {
  const float multiplier = 1.0f / scale;
  // Where floats are whole numbers: adding it rounds half to even.
  constexpr float kWhole = 12582912.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float product = x[i] * multiplier, y = x[i] == x[i] ? product : 0.0f;
    const float clipped = std::min(std::max(y, lo), hi);
    out[i] = ((clipped + kWhole) - kWhole) * scale;
  }
}

// term(0) + ... + term(n - 1), in an order that hangs on n alone.
template <typename Term>
double sum(int64_t n, const Term& term) {
  constexpr int kLanes = 8;
  double lanes[kLanes] = {}, total = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (; i < n; ++i) total += term(i);
  for (const double lane : lanes) total += lane;
  return total;
}

inline double squares(const float* x, int64_t n) {
  return sum(n, [x](int64_t i) { return static_cast<double>(x[i]) * static_cast<double>(x[i]); });
}

inline double squared_errors(const float* y, const float* exact, int64_t n) {
  return sum(n, [y, exact](int64_t i) {
    const double error = static_cast<double>(y[i]) - static_cast<double>(exact[i]);
    return error * error;
  });
}

}  // namespace jaxq
