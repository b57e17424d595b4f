// The fields of a product of two values, read and checked.
#pragma once
#include <cstdint>

#include "epilogue_fields.h"
#include "product.h"
#include "program.h"

namespace jaxq {

// Whether what a product reads and writes lies in its buffers.
inline void check_extents(const Reader& read, const Product& p, const Reader::Place& x, const Reader::Place& y) {
  const auto reach = [&](const int64_t* strides) {
    int64_t bytes = 0;
    for (int i = 0; i < Product::kAxes; ++i) bytes += extent(p.batch[i], strides[i], 1) - 1;
    return bytes;
  };
  const auto check_rest = [&](const uint8_t* data, int64_t bytes) {
    if (!read.holds(data, bytes)) throw Invalid("a product's rows lie outside of their buffer");
  };
  const Epilogue& e = p.epilogue;
  Reader::check(x, reach(p.x_strides) + extent(p.rows, p.x_row, p.depth));
  Reader::check(y, reach(p.y_strides) + extent(p.columns, p.y_row, 1) - 1 + extent(p.depth, p.y_step, 1));
  check_rest(e.out, reach(p.out_strides) + extent(p.rows, e.out_stride, p.columns * size_of(e.out_dtype)));
  if (e.residual) {
    const int64_t last = (e.residual_step ? p.columns : 1) * size_of(e.residual_dtype);
    const int64_t seen = rows_seen(p.rows, e.residual_repeat, e.residual_period);
    check_rest(e.residual, reach(p.residual_strides) + extent(seen, e.residual_stride, last));
  }
}

inline Product product(Reader& read) {
  Product p = {};
  for (auto* values : {&p.batch, &p.x_strides, &p.y_strides, &p.out_strides, &p.residual_strides}) {
    for (int64_t& value : *values) value = read.size();
  }
  p.rows = read.size(), p.columns = read.positive(), p.depth = read.positive();
  const Reader::Place x = read.place();
  p.x = x.data;
  p.x_room = x.room;
  p.x_dtype = read.bytes_dtype();
  p.x_row = read.size();
  const Reader::Place y = read.place();
  p.y = y.data;
  p.y_row = read.size(), p.y_step = read.size();
  p.epilogue = epilogue(read, p.rows, p.columns);
  p.softmax = read.optional_floats(1);
  demand(!p.softmax || !p.epilogue.table);
  if (p.batches() != 0 && p.rows != 0) check_extents(read, p, x, y);
  return p;
}

}  // namespace jaxq
