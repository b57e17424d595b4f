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

// Its dot products, on registers alone.
__attribute__((noinline)) inline void dot_products(int64_t steps) {
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

// 10^9 operations a second of `work(n)`, n steps of `operations` each: the best of 200 pieces of 0.1 ms, since others may
// use the core meanwhile.
template <typename Work>
double rate(const Work& work, double operations) {
  int64_t steps = 256;
  double best = 0, spent = 0;
  while (spent < 0.02) {
    const double start = seconds();
    work(steps);
    const double time = seconds() - start, found = 1e-9 * operations * static_cast<double>(steps) / time;
    if (time < 1e-4) {
      steps *= 2;
    } else if (found > best) {
      best = found;
    }
    spent += time;
  }
  return best;
}

inline double peak() { return rate(dot_products, 2 * 4 * kBlock * kPeakRows); }

}  // namespace JAXQ_ISA
}  // namespace jaxq
