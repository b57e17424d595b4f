// A copy of an array of up to five axes to one with other strides.
#pragma once
#include <cstdint>
#include <cstring>

#include "program.h"

namespace jaxq {

struct Copy {
  static constexpr int kAxes = 5;
  int64_t sizes[kAxes], from_strides[kAxes], to_strides[kAxes];
  int64_t bytes;  // of each value: they lie together
  const uint8_t* from;
  uint8_t* to;

  bool is_empty() const {
    for (const int64_t size : sizes) {
      if (size == 0) return true;
    }
    return false;
  }

  int64_t inner() const { return sizes[kAxes - 1]; }
  int64_t outer() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < kAxes; ++i) n *= sizes[i];
    return n;
  }

  // Bytes from the first value to behind the last.
  int64_t reach(const int64_t* strides) const {
    int64_t total = bytes;
    for (int i = 0; i < kAxes; ++i) total += extent(sizes[i], strides[i], 1) - 1;
    return total;
  }

  // The lines [first, last) of all outer ones.
  void run(int64_t first, int64_t last) const {
    const int64_t n = inner(), from_step = from_strides[kAxes - 1], to_step = to_strides[kAxes - 1];
    for (int64_t at = first; at < last; ++at) {
      const uint8_t* f = from;
      uint8_t* t = to;
      for (int64_t rest = at, i = kAxes - 2; i >= 0; --i) {
        f += rest % sizes[i] * from_strides[i];
        t += rest % sizes[i] * to_strides[i];
        rest /= sizes[i];
      }
      if (bytes == 1) {
        for (int64_t j = 0; j < n; ++j) t[j * to_step] = f[j * from_step];
      } else {
        for (int64_t j = 0; j < n; ++j) std::memcpy(t + j * to_step, f + j * from_step, static_cast<size_t>(bytes));
      }
    }
  }
};

inline Copy copy_fields(Reader& read) {
  Copy c;
  for (auto* values : {&c.sizes, &c.from_strides, &c.to_strides}) {
    for (int64_t& value : *values) value = read.size();
  }
  c.bytes = read.positive();
  const Reader::Place from = read.place(), to = read.place();
  c.from = from.data;
  c.to = to.data;
  if (!c.is_empty()) {
    Reader::check(from, c.reach(c.from_strides));
    Reader::check(to, c.reach(c.to_strides));
  }
  return c;
}

}  // namespace jaxq
