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

inline double peak() {
  constexpr int kChains = kPeakChains;  // that do not wait for one another
  Vectors<kChains> acc;
  each<kChains>([&](auto i) JAXQ_INLINE { at<i.value>(acc) = zero(); });
  const I32 a = all(0x01020304), b = all(0x04030201);
  const double found = rate(
      [&](int64_t steps) JAXQ_INLINE {
        for (int64_t i = 0; i < steps; ++i) {
          each<kChains>([&](auto j) JAXQ_INLINE { at<j.value>(acc) = dot4(at<j.value>(acc), a, b); });
        }
      },
      2 * 4 * kLanes * kChains);
  alignas(64) int32_t sink[kLanes];
  each<kChains>([&](auto i) JAXQ_INLINE { acc.first = add(acc.first, at<i.value>(acc)); });
  store(sink, acc.first);
  asm volatile("" : : "m"(sink));
  return found;
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
