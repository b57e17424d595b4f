// What tests draw.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <random>

namespace jaxq::test {

inline std::mt19937_64 generator(1);

inline int64_t between(int64_t lo, int64_t hi) { return std::uniform_int_distribution<int64_t>(lo, hi)(generator); }
inline bool chance(double p) { return std::uniform_real_distribution<>(0, 1)(generator) < p; }
inline float uniform(float lo, float hi) { return std::uniform_real_distribution<float>(lo, hi)(generator); }
template <class T>
T one_of(std::initializer_list<T> values) {
  return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
}

}  // namespace jaxq::test
