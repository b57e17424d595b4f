// Layer norm and RMS norm of rows of floats: the mean first, then the variance about it.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// Of kRows rows the sum over n values of x - mean, or of its square.
template <int kRows, bool kSquare>
inline void sums_about(const float* const* x, int64_t n, const F32* mean, float* sums) {
  F32 parts[kRows][2];
  JAXQ_UNROLL
  for (int i = 0; i < kRows; ++i) parts[i][0] = parts[i][1] = all(0.0f);
  const auto sum = [](F32 part, F32 y) { return kSquare ? mul_add(y, y, part) : add(part, y); };
  int64_t c = 0;
  for (; c + 2 * kLanes <= n; c += 2 * kLanes) {
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      JAXQ_UNROLL
      for (int v = 0; v < 2; ++v) parts[i][v] = sum(parts[i][v], sub(load(x[i] + c + v * kLanes), mean[i]));
    }
  }
  for (; c < n; c += kLanes) {
    const int64_t count = n - c < kLanes ? n - c : kLanes;
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      parts[i][0] = sum(parts[i][0], first_lanes(sub(load(x[i] + c, count), mean[i]), all(0.0f), count));
    }
  }
  JAXQ_UNROLL
  for (int i = 0; i < kRows; ++i) sums[i] = total(add(parts[i][0], parts[i][1]));
}

// kRows rows from `row` on.
template <int kRows>
void norm_rows(const Rows& r, const Norm& norm, int64_t row) {
  const Out<> out(r.out_dtype, norm.multiplier), bytes(norm.bytes_dtype, norm.multiplier);
  const float size = static_cast<float>(r.cols);
  const float* x[kRows];
  F32 mean[kRows], factor[kRows];
  float sums[kRows];
  JAXQ_UNROLL
  for (int i = 0; i < kRows; ++i) {
    x[i] = reinterpret_cast<const float*>(r.x + (row + i) * r.x_stride);
    mean[i] = all(0.0f);
  }
  if (norm.center) {
    sums_about<kRows, false>(x, r.cols, mean, sums);
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) mean[i] = all(sums[i] / size);
  }
  sums_about<kRows, true>(x, r.cols, mean, sums);
  JAXQ_UNROLL
  for (int i = 0; i < kRows; ++i) factor[i] = all(1.0f / __builtin_sqrtf(sums[i] / size + norm.epsilon));
  for (int64_t c = 0; c < r.cols; c += 4 * kLanes) {
    const int64_t n = r.cols - c < 4 * kLanes ? r.cols - c : 4 * kLanes;
    F32 scale[4] = {}, bias[4] = {};
    if (norm.scale) load_floats(norm.scale + c, n, scale);
    if (norm.bias) load_floats(norm.bias + c, n, bias);
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      F32 y[4];
      load_floats(x[i] + c, n, y);
      JAXQ_UNROLL
      for (int v = 0; v < 4; ++v) {
        y[v] = mul(sub(y[v], mean[i]), factor[i]);
        if (norm.scale) y[v] = mul(y[v], scale[v]);
        if (norm.bias) y[v] = add(y[v], bias[v]);
      }
      out.write(r.out + (row + i) * r.out_stride, c, y, n);
      if (norm.bytes) bytes.write(norm.bytes + (row + i) * norm.bytes_stride, c, y, n);
    }
  }
}

inline void layer_norm(const Rows& r, const Norm& norm, int64_t first, int64_t last) {
  constexpr int kRows = 4;  // at a time, since what follows one another in a row waits for one another
  for (; first + kRows <= last; first += kRows) norm_rows<kRows>(r, norm, first);
  for (; first < last; ++first) norm_rows<1>(r, norm, first);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
