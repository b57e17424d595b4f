// Pieces of up to 8 bytes, where an instruction set has no masks for bytes: nothing beyond them is touched.
#pragma once
#include "kernels.h"

namespace jaxq {
namespace JAXQ_ISA {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the packed weights and the pieces are little-endian");

template <typename T>
inline T read(const void* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}
template <typename T>
inline void write(void* p, T value) {
  __builtin_memcpy(p, &value, sizeof value);
}

// The first n bytes (all 8 from n = 8 on), zeros above.
inline uint64_t load_piece(const uint8_t* p, int64_t n) {
  if (n >= 8) return read<uint64_t>(p);
  if (n >= 4) return read<uint32_t>(p) | static_cast<uint64_t>(read<uint32_t>(p + n - 4)) << (n - 4) * 8;
  if (n <= 0) return 0;
  const uint64_t middle = p[n / 2], last = p[n - 1];
  return p[0] | middle << n / 2 * 8 | last << (n - 1) * 8;
}
inline void store_piece(uint8_t* p, uint64_t x, int64_t n) {
  if (n >= 8) return write(p, x);
  if (n >= 4) {
    write(p, static_cast<uint32_t>(x));
    return write(p + n - 4, static_cast<uint32_t>(x >> (n - 4) * 8));
  }
  if (n <= 0) return;
  p[0] = static_cast<uint8_t>(x);
  p[n / 2] = static_cast<uint8_t>(x >> n / 2 * 8);
  p[n - 1] = static_cast<uint8_t>(x >> (n - 1) * 8);
}

constexpr uint64_t eight(uint8_t value) { return value * 0x0101010101010101u; }

// to[i] = table[from[i]] for rows of n bytes; `to` may be `from`.
inline void look_up_one_by_one(uint8_t* to, int64_t to_stride, const uint8_t* from, int64_t from_stride, int64_t rows,
                               int64_t n, const uint8_t* table) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < n; ++i) to[r * to_stride + i] = table[from[r * from_stride + i]];
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
