// What the plain definitions of several kernels share.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels.h"

namespace jaxq::test {

inline int32_t value(const uint8_t* p, DType dtype) {
  return dtype == DType::s8 ? static_cast<int32_t>(static_cast<int8_t>(*p)) : static_cast<int32_t>(*p);
}

// Rounded, whatever is added to it.
inline float times(volatile float a, volatile float b) {
  volatile float product = a * b;
  return product;
}

// numerics.epilogue of one value.
inline uint8_t byte_of(float y, bool is_signed) {
  const int32_t q = static_cast<int32_t>(std::nearbyint(y));
  return is_signed ? static_cast<uint8_t>(static_cast<int8_t>(q)) : static_cast<uint8_t>(q);
}

inline uint8_t quantized(float x, float multiplier, DType dtype) {
  float y = times(std::isnan(x) ? 0.0f : x, multiplier);
  y = std::min(std::max(y, dtype == DType::s8 ? -127.0f : 0.0f), dtype == DType::s8 ? 127.0f : 255.0f);
  return byte_of(y, dtype == DType::s8);
}

}  // namespace jaxq::test
