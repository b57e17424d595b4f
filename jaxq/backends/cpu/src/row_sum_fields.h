// The fields of sums of rows, read and checked.
#pragma once
#include <cstdint>

#include "kernels.h"
#include "program.h"
#include "split.h"

namespace jaxq {

// A term of `rows` output rows of so many columns.
inline RowTerm row_term(Reader& read, int64_t rows, int64_t cols) {
  RowTerm t = {};
  const Reader::Place x = read.place();
  t.x = x.data;
  t.x_stride = read.size();
  t.repeat = read.positive();
  t.period = read.positive();
  t.step = read.number(0, 1);
  int64_t seen = rows_seen(rows, t.repeat, t.period);
  const Reader::Place index = read.place(true);
  t.index = index.data;
  t.index_stride = read.size();
  t.rows = read.positive();
  t.clamps = read.number(0, 1);
  if (index) {
    Reader::check(index, extent(seen, t.index_stride, 4), DType::f32);
    if (t.index_stride % 4) throw Invalid("an index is misaligned");
    seen = t.rows;
  }
  if (t.x_stride % 4) throw Invalid("a row of floats is misaligned");
  Reader::check(x, extent(seen, t.x_stride, (t.step ? cols : 1) * 4), DType::f32);
  return t;
}

// Where `rows` rows of floats come to, `cols` of them each.
template <typename Sum>
void to_rows(Reader& read, Sum& sum, int64_t rows) {
  const Reader::Place out = read.place();
  sum.out = out.data;
  sum.out_stride = read.size();
  if (sum.out_stride % 4) throw Invalid("a row of floats is misaligned");
  Reader::check(out, extent(rows, sum.out_stride, sum.cols * 4), DType::f32);
}

inline RowSum row_sum(Reader& read, int64_t rows) {
  RowSum s = {};
  s.cols = read.positive();
  s.terms = read.number(1, RowSum::kMost);
  for (int64_t i = 0; i < s.terms; ++i) s.term[i] = row_term(read, rows, s.cols);
  s.lo = read.real();
  s.hi = read.real();
  to_rows(read, s, rows);
  return s;
}

// Of `rows` output rows.
inline WeightedSum weighted_sum(Reader& read, int64_t rows) {
  WeightedSum s = {};
  s.cols = read.positive();
  s.rows = read.positive();
  const Reader::Place x = read.place();
  s.x = x.data;
  s.x_stride = read.size();
  if (s.x_stride % 4) throw Invalid("a row of floats is misaligned");
  Reader::check(x, extent(rows * s.rows, s.x_stride, s.cols * 4), DType::f32);
  if (read.number(0, 1)) s.weight = row_term(read, rows * s.rows, s.cols);
  s.scale = read.optional_floats(s.cols);
  s.lo = read.real();
  s.hi = read.real();
  to_rows(read, s, rows);
  return s;
}

// The same for some of its columns.
inline WeightedSum some_columns(WeightedSum s, Range columns) {
  s.x += columns.first * 4;
  if (s.weight.step) s.weight.x += columns.first * 4;
  if (s.scale) s.scale += columns.first;
  s.out += columns.first * 4;
  s.cols = columns.last - columns.first;
  return s;
}

}  // namespace jaxq
