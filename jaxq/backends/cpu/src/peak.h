// The roof of the matrix product.
#pragma once
#include <time.h>

namespace jaxq {
namespace JAXQ_ISA {

inline double seconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Rows and vectors of the matrix product's narrowest piece.
constexpr int kPeakRows = rows_of(1), kPeakVectors = kBlock / kLanes;

__attribute__((noinline)) inline void work(int64_t steps) {
  Vectors<kPeakRows * kPeakVectors> acc;
  each<kPeakRows * kPeakVectors>([&](auto i) JAXQ_INLINE { at<i.value>(acc) = zero(); });
  I32 a = all(0x01020304), b = all(0x04030201);
  for (; steps; --steps) {
    Vectors<kPeakVectors> line;
    each<kPeakVectors>([&](auto j) JAXQ_INLINE {
      keep(b);
      at<j.value>(line) = b;
    });
    each<kPeakRows>([&](auto i) JAXQ_INLINE {
      keep(a);
      each<kPeakVectors>([&](auto j) JAXQ_INLINE {
        I32& sum = at<i.value * kPeakVectors + j.value>(acc);
        sum = dot4(sum, a, at<j.value>(line));
        keep(sum);
      });
    });
  }
}

// The best of pieces of 0.1 ms: others may use the core meanwhile.
inline double peak() {
  int64_t steps = 256;
  double best = 0, spent = 0;
  while (spent < 0.02) {
    const double start = seconds();
    work(steps);
    const double time = seconds() - start;
    if (time < 1e-4) steps *= 2;
    const double rate = 2e-9 * 4 * kBlock * kPeakRows * static_cast<double>(steps) / time;
    if (time >= 1e-4 && rate > best) best = rate;
    spent += time;
  }
  return best;
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
