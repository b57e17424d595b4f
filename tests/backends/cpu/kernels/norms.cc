// Softmax and layer norm: float32 inside.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "rows_case.h"
#include "tests.h"

namespace jaxq::test {

void test_softmax() {
  const int64_t rows = between(1, 9), cols = some_columns();
  RowsCase t(DType::f32, one_of({DType::f32, DType::s8, DType::u8}), rows, cols);
  const float scale = one_of({0.1f, 1.0f, 5.0f, 50.0f}), multiplier = one_of({127.0f, 255.0f, 400.0f, 3e9f});
  for (int64_t r = 0; r < rows; ++r) {
    fill_random(t.row(r), cols, scale);
    for (int64_t c = 0; c < cols; ++c) {
      if (chance(0.05)) t.row(r)[c] = -INFINITY;
    }
    if (chance(0.1)) std::fill(t.row(r), t.row(r) + cols, -INFINITY);
    if (chance(0.05)) t.row(r)[between(0, cols - 1)] = NAN;
    if (chance(0.05)) t.row(r)[between(0, cols - 1)] = INFINITY;
  }
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->softmax(t.r, multiplier, first, last); });
  const Bytes together(t.out.memory, t.out.memory + t.out.size);
  for (int64_t r = 0; r < rows; ++r) kernels->softmax(t.r, multiplier, r, r + 1);
  bool right = t.is_like(together);
  for (int64_t r = 0; r < rows; ++r) {
    double most = -INFINITY, total = 0;
    for (int64_t c = 0; c < cols; ++c) {
      if (std::isnan(t.row(r)[c])) total = NAN;
      most = std::max(most, static_cast<double>(t.row(r)[c]));
    }
    for (int64_t c = 0; c < cols; ++c) total += std::exp(static_cast<double>(t.row(r)[c]) - most);
    for (int64_t c = 0; c < cols; ++c) {
      const double y = std::exp(static_cast<double>(t.row(r)[c]) - most) / total;
      // 1 rounding of the difference, 2 of the exponential, the others of the sum
      const double difference = std::isfinite(most) ? std::fabs(static_cast<double>(t.row(r)[c]) - most) : 0;
      right &= near(t, r, c, y, y * (1e-6 + 6e-8 * std::min(difference, 110.0)) + 2e-38, multiplier);
    }
  }
  check(right, "softmax cols " + std::to_string(cols) + " out " + std::to_string(static_cast<int>(t.r.out_dtype)));
}

void test_layer_norm() {
  const int64_t rows = between(1, 9), cols = some_columns();
  RowsCase t(DType::f32, one_of({DType::f32, DType::s8, DType::u8}), rows, cols);
  const float multiplier = one_of({20.0f, 60.0f}), epsilon = one_of({1e-6f, 1e-5f});
  const bool center = chance(0.7);
  Buffer<float> scale(cols), bias(cols);
  fill_random(scale.memory, cols, 1.0f);
  fill_random(bias.memory, cols, 1.0f);
  const float* scales = chance(0.8) ? scale.memory : nullptr;
  const float* biases = chance(0.6) ? bias.memory : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    fill_random(t.row(r), cols, one_of({0.01f, 1.0f, 30.0f}));
    const float shift = chance(0.5) ? 0.0f : uniform(-10.0f, 10.0f);
    for (int64_t c = 0; c < cols; ++c) t.row(r)[c] += shift;
  }
  const int64_t stride = cols + between(0, 1) * between(0, 5);
  Buffer<uint8_t> bytes((rows - 1) * stride + cols), apart(bytes.size);
  Norm norm = {scales, biases, epsilon, center, multiplier, chance(0.7) ? bytes.memory : nullptr, some_bytes(), stride};
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->layer_norm(t.r, norm, first, last); });
  const Bytes together(t.out.memory, t.out.memory + t.out.size);
  const bool has_bytes = norm.bytes;
  norm.bytes = nullptr;
  for (int64_t r = 0; r < rows; ++r) kernels->layer_norm(t.r, norm, r, r + 1);
  bool right = t.is_like(together);
  if (has_bytes) {
    const Rows to_bytes = {t.r.x, DType::f32, t.r.x_stride, apart.memory, norm.bytes_dtype, stride, cols};
    kernels->layer_norm(to_bytes, norm, 0, rows);
    for (int64_t r = 0; r < rows; ++r) {
      right &= !std::memcmp(bytes.memory + r * stride, apart.memory + r * stride, static_cast<size_t>(cols));
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, variance = 0, largest = 0;
    for (int64_t c = 0; c < cols; ++c) {
      mean += static_cast<double>(t.row(r)[c]);
      largest = std::max(largest, std::fabs(static_cast<double>(t.row(r)[c])));
    }
    mean = center ? mean / static_cast<double>(cols) : 0;
    for (int64_t c = 0; c < cols; ++c) variance += std::pow(static_cast<double>(t.row(r)[c]) - mean, 2);
    const double factor = 1 / std::sqrt(variance / static_cast<double>(cols) + static_cast<double>(epsilon));
    for (int64_t c = 0; c < cols; ++c) {
      const double a = scales ? static_cast<double>(scales[c]) : 1, b = biases ? static_cast<double>(biases[c]) : 0;
      const double y = (static_cast<double>(t.row(r)[c]) - mean) * factor * a + b;
      const double tolerance = 1e-6 * (std::fabs(y) + std::fabs(b)) + 1e-6 * largest * factor * std::fabs(a);
      right &= near(t, r, c, y, tolerance, multiplier);
    }
  }
  check(right, "layer_norm cols " + std::to_string(cols) + " out " + std::to_string(static_cast<int>(t.r.out_dtype)));
}

}  // namespace jaxq::test
