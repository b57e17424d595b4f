// The fields of what works on rows, read and checked. `rows` are those of the output.
#pragma once
#include <cstdint>

#include "kernels.h"
#include "program.h"

namespace jaxq {

inline Rows rows_of(Reader& read, int64_t rows) {
  Rows p = {};
  p.cols = read.positive();
  const Reader::Place x = read.place();
  p.x = x.data;
  p.x_dtype = read.dtype();
  p.x_stride = read.size();
  Reader::check(x, extent(rows, p.x_stride, p.cols * size_of(p.x_dtype)), p.x_dtype);
  const Reader::Place out = read.place();
  p.out = out.data;
  p.out_dtype = read.dtype();
  p.out_stride = read.size();
  Reader::check(out, extent(rows, p.out_stride, p.cols * size_of(p.out_dtype)), p.out_dtype);
  return p;
}

inline Elementwise elementwise_fields(Reader& read, int64_t rows) {
  Elementwise p = {};
  p.channels = read.positive();
  const Reader::Place x = read.place();
  p.x = x.data;
  p.x_dtype = read.bytes_dtype();
  p.x_stride = read.size();
  Reader::check(x, extent(rows, p.x_stride, p.channels));
  const Reader::Place y = read.place(true);
  p.y = y.data;
  p.y_dtype = read.bytes_dtype();
  p.y_stride = read.size();
  p.y_repeat = read.positive();
  p.y_period = read.positive();
  p.y_step = read.number(0, 1);
  if (y) Reader::check(y, extent(rows_seen(rows, p.y_repeat, p.y_period), p.y_stride, p.y_step ? p.channels : 1));
  return p;
}

inline Sum sum_fields(Reader& read, int64_t rows) {
  Sum p = {};
  p.terms = read.positive();
  p.channels = read.positive();
  const Reader::Place x = read.place();
  p.x = x.data;
  p.dtype = read.bytes_dtype();
  p.stride = read.size();
  Reader::check(x, extent(rows * p.terms, p.stride, p.channels));
  return p;
}

inline Function function_fields(Reader& read) {
  Function f = {};
  f.kind = static_cast<Function::Kind>(read.number(0, 1));
  for (float* number : {&f.linear, &f.cubic, &f.factor, &f.input_factor}) *number = read.real();
  return f;
}

inline Norm norm_fields(Reader& read, int64_t rows, int64_t cols) {
  Norm norm = {};
  norm.multiplier = *read.floats(1);
  norm.scale = read.optional_floats(cols);
  norm.bias = read.optional_floats(cols);
  norm.epsilon = read.real();
  norm.center = read.number(0, 1);
  const Reader::Place bytes = read.place(true);
  norm.bytes = bytes.data;
  norm.bytes_dtype = read.bytes_dtype();
  norm.bytes_stride = read.size();
  if (bytes) Reader::check(bytes, extent(rows, norm.bytes_stride, cols));
  return norm;
}

}  // namespace jaxq
