// Vectors that stay in registers.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// f(Index<0>) ... f(Index<n - 1>), written out: compilers keep arrays in registers only where every index is a constant
// from the start.
template <int i>
struct Index {
  static constexpr int value = i;
};
#define JAXQ_INLINE __attribute__((always_inline))
template <int n, int i = 0, typename F>
JAXQ_INLINE inline void each(const F& f) {
  if constexpr (i < n) {
    f(Index<i>());
    each<n, i + 1>(f);
  }
}

// n vectors in registers.
template <int n>
struct Vectors {
  I32 first;
  Vectors<n - 1> rest;
};
template <>
struct Vectors<0> {};
template <int i, int n>
JAXQ_INLINE inline I32& at(Vectors<n>& v) {
  if constexpr (i == 0) {
    return v.first;
  } else {
    return at<i - 1>(v.rest);
  }
}

template <int i, int n>
JAXQ_INLINE inline const I32& at(const Vectors<n>& v) {
  if constexpr (i == 0) {
    return v.first;
  } else {
    return at<i - 1>(v.rest);
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
