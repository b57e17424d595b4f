// The fields of an epilogue, read and checked.
#pragma once
#include <cstdint>

#include "kernels.h"
#include "program.h"

namespace jaxq {

// What an epilogue of `rows` output rows of `channels` reads.
inline Epilogue epilogue_values(Reader& read, int64_t rows, int64_t channels) {
  Epilogue e = {};
  e.multiplier = read.floats(channels);
  e.bias = read.floats(channels);
  e.lo = read.floats(channels);
  e.hi = read.floats(channels);
  e.row_scale = read.optional_floats(rows);
  const Reader::Place table = read.place(true);
  if (table) Reader::check(table, 256);
  e.table = table.data;
  const Reader::Place residual = read.place(true);
  e.residual = residual.data;
  e.residual_dtype = read.dtype();
  e.residual_stride = read.size();
  e.residual_repeat = read.positive();
  e.residual_period = read.positive();
  e.residual_step = read.number(0, 1);
  e.residual_multiplier = read.real();
  if (residual) {
    const int64_t seen = rows_seen(rows, e.residual_repeat, e.residual_period);
    const int64_t last = (e.residual_step ? channels : 1) * size_of(e.residual_dtype);
    Reader::check(residual, extent(seen, e.residual_stride, last), e.residual_dtype);
  }
  return e;
}

// And what it writes.
inline Epilogue epilogue(Reader& read, int64_t rows, int64_t channels) {
  Epilogue e = epilogue_values(read, rows, channels);
  const Reader::Place out = read.place();
  e.out = out.data;
  e.out_dtype = read.dtype();
  e.out_stride = read.size();
  if (e.table && e.out_dtype == DType::f32) throw Invalid("a table has bytes");
  Reader::check(out, extent(rows, e.out_stride, channels * size_of(e.out_dtype)), e.out_dtype);
  return e;
}

}  // namespace jaxq
