// What takes value by value: sums and products of two, sums of rows, tables.
#include <string>

#include "epilogue_case.h"
#include "reference.h"
#include "rows_case.h"
#include "tests.h"

namespace jaxq::test {

void test_elementwise() {
  const int64_t rows = between(1, 80), channels = some_channels();
  const bool has_y = chance(0.5);
  Elementwise op;
  op.channels = channels;
  op.x_dtype = some_bytes();
  op.y_dtype = some_bytes();
  op.x_stride = channels + (chance(0.3) ? between(0, 9) : 0);
  op.y_step = chance(0.3) ? 0 : 1;
  op.y_repeat = chance(0.3) ? between(1, 3) : 1;
  const int64_t distinct = (rows + op.y_repeat - 1) / op.y_repeat;
  op.y_period = chance(0.3) ? between(1, distinct) : distinct;
  op.y_stride = (op.y_step ? channels : 1) + (chance(0.3) ? between(0, 9) : 0);
  Buffer<uint8_t> x((rows - 1) * op.x_stride + channels), y((op.y_period - 1) * op.y_stride + (op.y_step ? channels : 1));
  fill_random(x.bytes(), x.size);
  fill_random(y.bytes(), y.size);
  op.x = x.memory;
  op.y = has_y ? y.memory : nullptr;
  EpilogueCase c(rows, channels, has_y ? 127.0f * 127.0f : 127.0f);
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->elementwise(op, c.e, first, last); });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < channels; ++k) {
      int32_t acc = value(&x[r * op.x_stride + k], op.x_dtype);
      if (has_y) acc *= value(&y[r / op.y_repeat % op.y_period * op.y_stride + k * op.y_step], op.y_dtype);
      c.expect(r, k, acc);
    }
  }
  check(c.right(), std::string("elementwise") + (has_y ? " x * y" : "") + c.describe());
}

void test_sum() {
  const int64_t rows = between(1, 6), channels = some_channels(), terms = chance(0.2) ? between(60, 200) : between(1, 50);
  const int64_t stride = channels + (chance(0.3) ? between(0, 9) : 0);
  const DType dtype = some_bytes();
  Buffer<uint8_t> x((rows * terms - 1) * stride + channels);
  fill_random(x.bytes(), x.size);
  EpilogueCase c(rows, channels, 127.0f * static_cast<float>(terms));
  in_parts(rows, [&](int64_t first, int64_t last) {
    kernels->sum({x.memory, dtype, stride, terms, channels}, c.e, first, last);
  });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < channels; ++k) {
      int32_t acc = 0;
      for (int64_t t = 0; t < terms; ++t) acc += value(&x[(r * terms + t) * stride + k], dtype);
      c.expect(r, k, acc);
    }
  }
  check(c.right(), "sum terms " + std::to_string(terms) + c.describe());
}

void test_table() {
  const int64_t rows = between(1, 9), cols = some_columns();
  RowsCase t(DType::s8, DType::s8, rows, cols);
  Buffer<uint8_t> table(256);
  fill_random(table.bytes(), 256);
  in_parts(rows, [&](int64_t first, int64_t last) { kernels->table(t.r, table.memory, first, last); });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) t.expected[static_cast<size_t>(r * t.out_stride + c)] = table[t.x[r * t.stride + c]];
  }
  check(t.right(), "table cols " + std::to_string(cols));
}

}  // namespace jaxq::test
