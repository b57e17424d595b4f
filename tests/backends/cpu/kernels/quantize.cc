// From floats to bytes and back, and functions of floats, which may be made on the way.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "reference.h"
#include "rows_case.h"
#include "tests.h"

namespace jaxq::test {

void test_quantize() {
  const int64_t rows = between(1, 9), cols = some_columns(), step = between(0, 1);
  const DType dtype = some_bytes();
  RowsCase t(DType::f32, dtype, rows, cols);
  Buffer<float> multiplier(step ? cols : 1);
  for (int64_t i = 0; i < multiplier.size; ++i) multiplier[i] = chance(0.2) ? 1.0f : uniform(0.1f, 10.0f);
  for (int64_t r = 0; r < rows; ++r) {
    fill_random(t.row(r), cols, chance(0.1) ? 1e12f : 60.0f);
    for (int64_t c = 0; c < cols; ++c) {
      if (chance(0.02)) t.row(r)[c] = one_of({NAN, INFINITY, -INFINITY, 3e38f, -3e38f, -0.0f});
      if (chance(0.2)) t.row(r)[c] = std::round(t.row(r)[c]) + 0.5f;
    }
  }
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->quantize(t.r, multiplier.memory, step, first, last); });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      t.expected[static_cast<size_t>(r * t.out_stride + c)] = quantized(t.row(r)[c], multiplier[c * step], dtype);
    }
  }
  check(t.right(), "quantize cols " + std::to_string(cols) + " step " + std::to_string(step));
}

void test_dequantize() {
  const int64_t rows = between(1, 9), cols = some_columns(), step = between(0, 1);
  RowsCase t(some_bytes(), DType::f32, rows, cols);
  Buffer<float> scale(step ? cols : 1);
  fill_random(scale.memory, scale.size, 1.0f);
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->dequantize(t.r, scale.memory, step, first, last); });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const float y = static_cast<float>(value(&t.x[r * t.stride + c], t.r.x_dtype)) * scale[c * step];
      std::memcpy(t.expected.data() + r * t.out_stride + c * 4, &y, 4);
    }
  }
  check(t.right(), "dequantize cols " + std::to_string(cols) + " step " + std::to_string(step));
}

namespace {

Function some_function() {
  Function f = {};
  f.kind = one_of({Function::normal, Function::sigmoid});
  f.linear = uniform(0.5f, 2), f.cubic = chance(0.5) ? 0.0f : uniform(0.01f, 0.1f);
  f.factor = uniform(0.5f, 3), f.input_factor = one_of({1.0f, -1.0f});
  return f;
}

double exactly(const Function& f, double x) {
  x *= static_cast<double>(f.input_factor);
  const double tail = f.kind == Function::normal ? std::erfc(-x / std::sqrt(2.0)) / 2
                                                 : 1 / (1 + std::exp(-(f.linear * x + f.cubic * x * x * x)));
  return static_cast<double>(f.factor) * (tail == 0 ? 0.0 : x * tail);
}

}  // namespace

void test_function() {
  const int64_t rows = between(1, 6), cols = some_columns();
  RowsCase t(DType::f32, DType::f32, rows, cols);
  for (int64_t r = 0; r < rows; ++r) {
    fill_random(t.row(r), cols, chance(0.1) ? 1e6f : 3.0f);
    if (chance(0.2)) t.row(r)[between(0, cols - 1)] = one_of({NAN, INFINITY, -INFINITY, 0.0f});
  }
  const Function f = some_function();
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->function(t.r, f, first, last); });
  bool right = true;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const double x = static_cast<double>(t.row(r)[c]), y = exactly(f, x);
      float got;
      std::memcpy(&got, t.out.memory + r * t.out_stride + c * 4, 4);
      const bool is_infinite = std::isinf(y) && static_cast<double>(got) == y;
      right &= is_infinite || near(t, r, c, y, 1e-6 * (1 + std::fabs(x)) * static_cast<double>(f.factor), 1.0f);
    }
  }
  check(right, "function cols " + std::to_string(cols) + " kind " + std::to_string(f.kind));
}

// Scales and rows as they are defined; those of a function as of the floats that it makes.
void test_quantize_rows() {
  const int64_t rows = between(1, 9), cols = some_columns();
  RowsCase t(DType::f32, DType::s8, rows, cols), made(DType::f32, DType::f32, rows, cols);
  const bool has_factor = chance(0.5), has_function = chance(0.3);
  Buffer<float> factor(cols), scales(rows), room(cols);
  for (int64_t c = 0; c < cols; ++c) factor[c] = uniform(0.1f, 10.0f);
  const float size = one_of({1e-25f, 1e-3f, 1.0f, 60.0f, 1e30f});
  for (int64_t r = 0; r < rows; ++r) {
    fill_random(t.row(r), cols, has_function ? 3.0f : size);
    if (chance(0.1)) std::fill(t.row(r), t.row(r) + cols, 0.0f);
    if (chance(0.1)) t.row(r)[between(0, cols - 1)] = one_of({NAN, INFINITY, -INFINITY});
    std::memcpy(made.row(r), t.row(r), static_cast<size_t>(cols) * 4);
  }
  const Function f = some_function();
  in_parts(rows, [&](int64_t first, int64_t last) {
    kernels->quantize_rows(t.r, has_factor ? factor.memory : nullptr, has_function ? &f : nullptr, room.memory,
                           scales.memory, first, last);
  });
  if (has_function) kernels->function(made.r, f, 0, rows);
  bool right = true;
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* values = has_function ? made.out.memory + r * made.out_stride : made.x.memory + r * made.stride;
    float amax = 1e-20f;
    std::vector<float> x(static_cast<size_t>(cols));
    std::memcpy(x.data(), values, x.size() * 4);
    for (int64_t c = 0; c < cols; ++c) {
      float& y = x[static_cast<size_t>(c)];
      if (has_factor) y = times(y, factor[c]);
      if (!std::isnan(y)) amax = std::max(amax, std::fabs(y));
    }
    const float scale = times(std::min(amax, FLT_MAX), 1.0f / 127.0f);
    right &= scales[r] == scale;
    for (int64_t c = 0; c < cols; ++c) {
      t.expected[static_cast<size_t>(r * t.out_stride + c)] = quantized(x[static_cast<size_t>(c)], 1.0f / scale, DType::s8);
    }
  }
  check(right && t.right(), "quantize_rows cols " + std::to_string(cols) + " factor " + std::to_string(has_factor) +
                                " function " + std::to_string(has_function));
}

}  // namespace jaxq::test
