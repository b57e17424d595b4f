// The epilogue that most kernels end with, drawn, and its plain definition.
#pragma once
#include <cstdint>
#include <string>

#include "buffer.h"
#include "kernels.h"
#include "tests.h"

namespace jaxq::test {

// A random epilogue for `rows` x `channels`, its vectors, its residual and its output.
struct EpilogueCase {
  // `may_be_by_row`: its rows may have scales of their own, as those of a matrix product.
  EpilogueCase(int64_t rows, int64_t channels, float largest, bool may_be_by_row = false);

  // The accumulator of a value whose output is then expected.
  void expect(int64_t row, int64_t c, int32_t acc);
  bool right() const { return same(before, out); }
  std::string describe() const;

  int64_t rows, channels;
  Buffer<float> multiplier, bias, lo, hi, row_scale;
  Buffer<uint8_t> table;
  int64_t repeat, period, step;
  DType residual_dtype;
  int64_t residual_stride;
  Buffer<uint8_t> residual;
  DType out_dtype;
  int64_t out_stride;
  Buffer<uint8_t> out;
  Bytes before;  // then what is expected; what lies between rows stays
  Epilogue e;
};

}  // namespace jaxq::test
