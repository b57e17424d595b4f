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

// The best of 200 pieces of 0.1 ms: others may use the core meanwhile.
inline double peak() {
  constexpr int kChains = kPeakChains;  // that do not wait for one another
  Vectors<kChains> acc;
  each<kChains>([&](auto i) JAXQ_INLINE { at<i.value>(acc) = zero(); });
  I32 a = all(0x01020304), b = all(0x04030201);
  int64_t steps = 256;
  double best = 0, spent = 0;
  while (spent < 0.02) {
    const double start = seconds();
    for (int64_t i = 0; i < steps; ++i) {
      each<kChains>([&](auto j) JAXQ_INLINE { at<j.value>(acc) = dot4(at<j.value>(acc), a, b); });
    }
    const double time = seconds() - start, rate = 2e-9 * 4 * kLanes * kChains * static_cast<double>(steps) / time;
    if (time < 1e-4) {
      steps *= 2;
    } else if (rate > best) {
      best = rate;
    }
    spent += time;
  }
  alignas(64) int32_t sink[kLanes];
  each<kChains>([&](auto i) JAXQ_INLINE { acc.first = add(acc.first, at<i.value>(acc)); });
  store(sink, acc.first);
  asm volatile("" : : "m"(sink));
  return best;
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
