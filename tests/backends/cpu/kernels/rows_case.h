// Rows for kernels from one type to another, and how near an output is to what is expected.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "buffer.h"
#include "kernels.h"
#include "random.h"
#include "reference.h"
#include "tests.h"

namespace jaxq::test {

// Rows of one type to rows of another, filled at random.
struct RowsCase {
  RowsCase(DType from, DType to, int64_t count, int64_t cols)
      : stride((cols + (chance(0.3) ? between(0, 5) : 0)) * size_of(from)),
        out_stride((cols + (chance(0.3) ? between(0, 5) : 0)) * size_of(to)),
        x((count - 1) * stride + cols * size_of(from)),
        out((count - 1) * out_stride + cols * size_of(to)),
        r{x.memory, from, stride, out.memory, to, out_stride, cols} {
    fill_random(x.bytes(), x.size);
    fill_random(out.bytes(), out.size);
    expected.assign(out.memory, out.memory + out.size);
  }
  float* row(int64_t i) { return reinterpret_cast<float*>(x.memory + i * stride); }
  bool right() const { return same(expected, out); }
  // Whether the output is `other`, whichever numbers its NaN are.
  bool is_like(const Bytes& other) const {
    const int64_t size = size_of(r.out_dtype);
    for (int64_t i = 0; i < out.size; i += size) {
      float a = 0, b = 0;
      std::memcpy(&a, &out[i], static_cast<size_t>(size));
      std::memcpy(&b, &other[static_cast<size_t>(i)], static_cast<size_t>(size));
      if (!(std::isnan(a) && std::isnan(b)) && std::memcmp(&a, &b, 4) != 0) return false;
    }
    return true;
  }
  int64_t stride, out_stride;
  Buffer<uint8_t> x, out;
  Rows r;
  Bytes expected;
};

// Floats within `tolerance` of what is expected (NaN where NaN is), or bytes one off at most, and then near a tie.
inline bool near(const RowsCase& t, int64_t row, int64_t c, double y, double tolerance, float multiplier) {
  const uint8_t* p = t.out.memory + row * t.out_stride + c * size_of(t.r.out_dtype);
  if (t.r.out_dtype == DType::f32) {
    float got;
    std::memcpy(&got, p, 4);
    return std::isnan(y) ? std::isnan(got) : std::fabs(static_cast<double>(got) - y) <= tolerance;
  }
  const uint8_t expected = quantized(static_cast<float>(y), multiplier, t.r.out_dtype);
  if (*p == expected) return true;
  return std::abs(value(p, t.r.out_dtype) - value(&expected, t.r.out_dtype)) == 1 &&
         std::fabs(std::fabs(y * multiplier - std::trunc(y * multiplier)) - 0.5) <= 2 * tolerance * multiplier + 1e-5;
}

}  // namespace jaxq::test
