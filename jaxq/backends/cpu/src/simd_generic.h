// Vectors of any machine, by the compiler's own vector types: 4 lanes of 32 bits.
#pragma once
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "pieces.h"

namespace jaxq {
namespace JAXQ_ISA {

constexpr int kLanes = 4;
constexpr int kWidth = 4 * kLanes;
// See simd_avx512.h. 16 registers.
constexpr int kWide = 1, kFewRows = 1, kManyBlocks = 2, kColumns = 2, kColumnsOfTwo = 1;
constexpr int rows_of(int) { return 4; }
using I32 = int32_t __attribute__((vector_size(16)));
using U32 = uint32_t __attribute__((vector_size(16)));
using I16 = int16_t __attribute__((vector_size(16)));
using U16 = uint16_t __attribute__((vector_size(16)));
using S8 = int8_t __attribute__((vector_size(16)));
using U8 = uint8_t __attribute__((vector_size(16)));
using F32 = float __attribute__((vector_size(16)));

inline I32 all(int32_t x) { return I32{x, x, x, x}; }
inline F32 all(float x) { return F32{x, x, x, x}; }
inline I32 zero() { return all(0); }
inline I32 load(const int32_t* p) { return read<I32>(p); }
inline F32 load(const float* p) { return read<F32>(p); }
inline F32 load(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  return F32{n > 0 ? p[0] : 0, n > 1 ? p[1] : 0, n > 2 ? p[2] : 0, 0};
}
inline void store(int32_t* p, I32 x) { write(p, x); }
inline void store(float* p, F32 x) { write(p, x); }
inline void store(float* p, F32 x, int64_t n) {
  if (n >= kLanes) return store(p, x);
  for (int64_t i = 0; i < n; ++i) p[i] = x[i];
}

// The first n <= 4 bytes, widened.
inline I32 widen_u8(const uint8_t* p, int64_t n) {
  const int32_t x = n >= kLanes ? read<int32_t>(p) : static_cast<int32_t>(load_piece(p, n));
  return I32{x & 255, x >> 8 & 255, x >> 16 & 255, x >> 24 & 255};
}
inline I32 widen_s8(const uint8_t* p, int64_t n) {
  const I32 x = widen_u8(p, n) ^ all(128);
  return x - all(128);
}
inline I32 widen_s8(const uint8_t* p) { return widen_s8(p, kLanes); }
inline I32 widen_u8(const uint8_t* p) { return widen_u8(p, kLanes); }
// The first n lanes, which hold values of that type, as bytes.
inline void store_bytes(uint8_t* p, I32 x, int64_t n) {
  const U32 u = (U32)x & 255u;
  store_piece(p, u[0] | u[1] << 8 | u[2] << 16 | u[3] << 24, n < kLanes ? n : kLanes);
}

// Without overflow: sums and products of integers wrap.
inline I32 add(I32 a, I32 b) { return (I32)((U32)a + (U32)b); }
inline I32 mul(I32 a, I32 b) { return (I32)((U32)a * (U32)b); }
inline I32 bit_xor(I32 a, I32 b) { return a ^ b; }
inline I32 bit_or(I32 a, I32 b) { return a | b; }
inline I32 shift_left(I32 x, int bits) { return (I32)((U32)x << bits); }
inline I32 shift_right(I32 x, int bits) { return (I32)((U32)x >> bits); }  // logical
inline I32 shift_right_signed(I32 x, int bits) { return x >> bits; }
inline F32 add(F32 a, F32 b) { return a + b; }
inline F32 sub(F32 a, F32 b) { return a - b; }
inline F32 mul(F32 a, F32 b) { return a * b; }
inline F32 div(F32 a, F32 b) { return a / b; }
// b where a value is not a number.
inline F32 min(F32 a, F32 b) { return a < b ? a : b; }
inline F32 max(F32 a, F32 b) { return a > b ? a : b; }
inline F32 to_float(I32 x) { return __builtin_convertvector(x, F32); }
// Half to even: a sum of 2^23 and more has no fraction left. What is larger has none anyway.
inline F32 round_to_float(F32 x) {
  const I32 sign = (I32)x & all(INT32_MIN);
  const F32 size = (F32)((I32)x & all(INT32_MAX)), large = all(8388608.0f);
  const F32 whole = size < large ? (size + large) - large : size;
  return (F32)((I32)whole | sign);
}
inline I32 round(F32 x) { return __builtin_convertvector(max(round_to_float(x), all(-2147483648.0f)), I32); }
inline F32 zero_where_nan(F32 x) { return (F32)((I32)x & (x == x)); }
inline F32 mul_add(F32 a, F32 b, F32 c) { return a * b + c; }
inline F32 times_power_of_two(F32 x, F32 n) {
  const I32 exponent = add(round(n), all(127));  // negative: a factor of 0
  return mul(x, (F32)shift_left(exponent & (exponent > 0), 23));
}
inline F32 first_lanes(F32 x, F32 y, int64_t n) { return I32{0, 1, 2, 3} < all(static_cast<int32_t>(n)) ? x : y; }
inline float total(F32 x) { return (x[0] + x[2]) + (x[1] + x[3]); }
inline float largest(F32 x) {
  float most = x[0];
  for (int i = 1; i < kLanes; ++i) most = most > x[i] ? most : x[i];
  return most;
}

// 4 bytes in every lane.
inline I32 all_bytes(const uint8_t* p) { return all(read<int32_t>(p)); }
inline I32 load_bytes(const uint8_t* p) { return read<I32>(p); }
// acc + the sum over the 4 bytes of each lane of a (unsigned here, see kTakesSigned) * b (signed).
inline I32 dot4(I32 acc, I32 a, I32 b) {
  const I16 a0 = (I16)a & 255, a1 = (I16)((U16)a >> 8), b0 = (I16)((U16)b << 8) >> 8, b1 = (I16)b >> 8;
#ifdef __SSE2__
  return add(add(acc, (I32)_mm_madd_epi16((__m128i)a0, (__m128i)b0)), (I32)_mm_madd_epi16((__m128i)a1, (__m128i)b1));
#else
  const I32 p0 = (I32)(a0 * b0), p1 = (I32)(a1 * b1);  // the products fit 16 bits
  acc = add(add(acc, p0 >> 16), p1 >> 16);
  return add(add(acc, (I32)((U32)p0 << 16) >> 16), (I32)((U32)p1 << 16) >> 16);
#endif
}
constexpr bool kTakesSigned = false, kTakesUnsigned = true;
// See simd_avx512.h.
#if defined(__SSE2__)
inline void keep(I32& x) { asm volatile("" : "+x"(x)); }
#elif defined(__aarch64__)
inline void keep(I32& x) { asm volatile("" : "+w"(x)); }
#else
inline void keep(I32& x) { asm volatile("" : "+m"(x)); }
#endif

inline I32 load_bytes(const uint8_t* p, int64_t n) {
  if (n >= kWidth) return load_bytes(p);
  const uint64_t halves[2] = {load_piece(p, n), n > 8 ? load_piece(p + 8, n - 8) : 0};
  return read<I32>(halves);
}
inline void put_bytes(uint8_t* p, I32 x) { write(p, x); }
inline void put_bytes(uint8_t* p, I32 x, int64_t n) {
  if (n >= kWidth) return put_bytes(p, x);
  uint64_t halves[2];
  write(halves, x);
  store_piece(p, halves[0], n);
  if (n > 8) store_piece(p + 8, halves[1], n - 8);
}
inline I32 splat(uint8_t x) { return (I32)(U8{} + x); }
inline I32 max_s8(I32 a, I32 b) { return (I32)((S8)a > (S8)b ? (S8)a : (S8)b); }
inline I32 min_s8(I32 a, I32 b) { return (I32)((S8)a < (S8)b ? (S8)a : (S8)b); }
inline I32 max_u8(I32 a, I32 b) { return (I32)((U8)a > (U8)b ? (U8)a : (U8)b); }
inline I32 min_u8(I32 a, I32 b) { return (I32)((U8)a < (U8)b ? (U8)a : (U8)b); }

template <int kParts>
inline I32 load_parts(const uint8_t* const* p, int64_t n) {
  static_assert(kParts == 1);
  return load_bytes(p[0], n);
}
template <int kParts>
inline void store_parts(uint8_t* const* p, I32 x, int64_t n) {
  static_assert(kParts == 1);
  put_bytes(p[0], x, n);
}

// Quad order: see simd_avx512.h; with 4 lanes it is the order of the channels.
#ifdef __SSE2__
inline void interleave(I32 r0, I32 r1, I32 r2, I32 r3, I32* out) {
  const __m128i a = (__m128i)r0, b = (__m128i)r1, c = (__m128i)r2, d = (__m128i)r3;
  const __m128i low01 = _mm_unpacklo_epi8(a, b), high01 = _mm_unpackhi_epi8(a, b);
  const __m128i low23 = _mm_unpacklo_epi8(c, d), high23 = _mm_unpackhi_epi8(c, d);
  out[0] = (I32)_mm_unpacklo_epi16(low01, low23);
  out[1] = (I32)_mm_unpackhi_epi16(low01, low23);
  out[2] = (I32)_mm_unpacklo_epi16(high01, high23);
  out[3] = (I32)_mm_unpackhi_epi16(high01, high23);
}
inline __m128i narrow(I32 a, I32 b) { return _mm_packs_epi32((__m128i)a, (__m128i)b); }
inline I32 quads_to_s8(I32 a, I32 b, I32 c, I32 d) { return (I32)_mm_packs_epi16(narrow(a, b), narrow(c, d)); }
inline I32 quads_to_u8(I32 a, I32 b, I32 c, I32 d) { return (I32)_mm_packus_epi16(narrow(a, b), narrow(c, d)); }
#else
inline void interleave(I32 r0, I32 r1, I32 r2, I32 r3, I32* out) {
  for (int v = 0; v < 4; ++v) {
    for (int i = 0; i < 4; ++i) {
      const U8 lane = {((U8)r0)[v * 4 + i], ((U8)r1)[v * 4 + i], ((U8)r2)[v * 4 + i], ((U8)r3)[v * 4 + i]};
      out[v][i] = ((I32)lane)[0];
    }
  }
}
inline I32 clipped(I32 x, int32_t lo, int32_t hi) {
  x = x > lo ? x : all(lo);
  return (x < hi ? x : all(hi)) & 255;
}
inline I32 lowest_bytes(I32 a, I32 b, I32 c, I32 d) {
  U8 bytes = {};
  for (int i = 0; i < 4; ++i) {
    bytes[i] = static_cast<uint8_t>(a[i]);
    bytes[4 + i] = static_cast<uint8_t>(b[i]);
    bytes[8 + i] = static_cast<uint8_t>(c[i]);
    bytes[12 + i] = static_cast<uint8_t>(d[i]);
  }
  return (I32)bytes;
}
inline I32 quads_to_s8(I32 a, I32 b, I32 c, I32 d) {
  return lowest_bytes(clipped(a, -128, 127), clipped(b, -128, 127), clipped(c, -128, 127), clipped(d, -128, 127));
}
inline I32 quads_to_u8(I32 a, I32 b, I32 c, I32 d) {
  return lowest_bytes(clipped(a, 0, 255), clipped(b, 0, 255), clipped(c, 0, 255), clipped(d, 0, 255));
}
#endif
inline I32 in_order(I32 x) { return x; }

// n bytes, each xor-ed with flip.
inline void copy_bytes(uint8_t* to, const uint8_t* from, int64_t n, uint8_t flip) {
  for (int64_t i = 0; i < n; i += 8) store_piece(to + i, load_piece(from + i, n - i) ^ eight(flip), n - i);
}
inline void fill_bytes(uint8_t* to, int64_t n, uint8_t value) {
  for (int64_t i = 0; i < n; i += 8) store_piece(to + i, eight(value), n - i);
}

inline void look_up(uint8_t* to, int64_t to_stride, const uint8_t* from, int64_t from_stride, int64_t rows, int64_t n,
                    const uint8_t* table) {
  look_up_one_by_one(to, to_stride, from, from_stride, rows, n, table);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
