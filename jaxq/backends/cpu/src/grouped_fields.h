// The fields of a product with a weight in groups, read and checked.
#pragma once
#include <cstdint>

#include "kernels.h"
#include "program.h"

namespace jaxq {

// All rows and channels; `e` becomes its epilogue.
inline GroupedDot grouped_dot(Reader& read, Epilogue& e) {
  GroupedDot d = {};
  d.rows = read.size();
  const Reader::Place x = read.place();
  d.x = x.data;
  d.x_stride = read.size();
  d.depth = read.positive();
  d.is_int4 = read.number(0, 1);
  d.group_size = read.number(2, int64_t{1} << 40);
  if (d.group_size % 2) throw Invalid("a group begins within a byte");
  d.channels = read.positive();
  Reader::check(x, extent(d.rows, d.x_stride, d.depth * 4), DType::f32);
  const int64_t blocks = round_up(d.channels, kBlock) / kBlock;
  const int64_t block = lines_of(d.depth, d.is_int4) * kBlock, scales = d.groups() * kBlock;
  const Reader::Place weight = read.place(), scale = read.place();
  Reader::check(weight, extent(blocks, block, block));
  Reader::check(scale, extent(blocks, scales * 4, scales * 4), DType::f32);
  d.weight = weight.data;
  d.scale = reinterpret_cast<const float*>(scale.data);
  e = {};
  e.bias = read.optional_floats(d.channels);
  d.lo = read.real();
  d.hi = read.real();
  e.residual_dtype = e.out_dtype = DType::f32;
  const Reader::Place residual = read.place(true);
  e.residual = residual.data;
  e.residual_stride = read.size();
  e.residual_repeat = read.positive();
  e.residual_period = read.positive();
  e.residual_step = read.number(0, 1);
  if (residual) {
    const int64_t seen = rows_seen(d.rows, e.residual_repeat, e.residual_period);
    Reader::check(residual, extent(seen, e.residual_stride, (e.residual_step ? d.channels : 1) * 4), DType::f32);
  }
  const Reader::Place out = read.place();
  e.out = out.data;
  e.out_stride = read.size();
  Reader::check(out, extent(d.rows, e.out_stride, d.channels * 4), DType::f32);
  d.epilogue = &e;
  return d;
}

}  // namespace jaxq
