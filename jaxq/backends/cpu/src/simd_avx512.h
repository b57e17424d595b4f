// The vectors of AVX512-VNNI: 16 lanes of 32 bits.
#pragma once
// GCC 12 warns of its own intrinsics.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "pieces.h"

namespace jaxq {
namespace JAXQ_ISA {

constexpr int kLanes = 16;
constexpr int kWidth = 4 * kLanes;  // bytes of a vector
// Blocks of 16 channels that a piece of the matrix product takes at once, and its rows at most: their sums stay in
// registers. Few rows take more blocks.
constexpr int kWide = 4, kFewRows = 3, kManyBlocks = 8;
constexpr int rows_of(int blocks) { return blocks > 3 ? 6 : blocks > 2 ? 8 : blocks > 1 ? 9 : 10; }
// Columns of one line, and of two, of the output of a depthwise convolution whose accumulators (4 vectors each) stay in
// registers.
constexpr int kColumns = 6, kColumnsOfTwo = 3;
using I32 = __m512i;
using F32 = __m512;

inline __mmask16 first(int64_t n) { return n >= kLanes ? 0xFFFF : static_cast<__mmask16>((1u << n) - 1); }
inline __mmask64 first_bytes(int64_t n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }

inline I32 zero() { return _mm512_setzero_si512(); }
inline I32 all(int32_t x) { return _mm512_set1_epi32(x); }
inline F32 all(float x) { return _mm512_set1_ps(x); }
inline I32 load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline F32 load(const float* p) { return _mm512_loadu_ps(p); }
inline F32 load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store(int32_t* p, I32 x) { _mm512_storeu_si512(p, x); }
inline void store(float* p, F32 x) { _mm512_storeu_ps(p, x); }
inline void store(float* p, F32 x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }

// The first n <= 16 bytes, widened.
inline I32 widen_s8(const uint8_t* p, int64_t n) {
  return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p));
}
inline I32 widen_u8(const uint8_t* p, int64_t n) {
  return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p));
}
inline I32 widen_s8(const uint8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline I32 widen_u8(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
// The first n lanes, which hold values of that type, as bytes.
inline void store_bytes(uint8_t* p, I32 x, int64_t n) {
  _mm_mask_storeu_epi8(p, first(n), _mm512_cvtepi32_epi8(x));
}

inline I32 add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
inline I32 bit_xor(I32 a, I32 b) { return _mm512_xor_si512(a, b); }
inline I32 bit_or(I32 a, I32 b) { return _mm512_or_si512(a, b); }
inline I32 shift_left(I32 x, int bits) { return _mm512_slli_epi32(x, static_cast<unsigned>(bits)); }
inline I32 shift_right(I32 x, int bits) { return _mm512_srli_epi32(x, static_cast<unsigned>(bits)); }  // logical
inline I32 shift_right_signed(I32 x, int bits) { return _mm512_srai_epi32(x, static_cast<unsigned>(bits)); }
inline I32 mul(I32 a, I32 b) { return _mm512_mullo_epi32(a, b); }
inline F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
inline F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
inline F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
inline F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
inline F32 to_float(I32 x) { return _mm512_cvtepi32_ps(x); }
// Half to even.
inline I32 round(F32 x) { return _mm512_cvtps_epi32(x); }
inline F32 round_to_float(F32 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// min and max give their second operand where one is NaN.
inline F32 zero_where_nan(F32 x) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x); }
// a * b + c, rounded once where that is fast: not for what has to be exact.
inline F32 mul_add(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
// x * 2**n, n a whole number in [-150, 127]; what is below the normal numbers may become 0.
inline F32 times_power_of_two(F32 x, F32 n) { return _mm512_scalef_ps(x, n); }
// The first n lanes of x, the others of y.
inline F32 first_lanes(F32 x, F32 y, int64_t n) { return _mm512_mask_mov_ps(y, first(n), x); }
inline float total(F32 x) { return _mm512_reduce_add_ps(x); }
inline float largest(F32 x) { return _mm512_reduce_max_ps(x); }

// 4 bytes in every lane.
inline I32 all_bytes(const uint8_t* p) { return _mm512_set1_epi32(read<int32_t>(p)); }
inline I32 load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
// acc + the sum over the 4 bytes of each lane of a (unsigned here, see kTakesSigned) * b (signed).
inline I32 dot4(I32 acc, I32 a, I32 b) { return _mm512_dpbusd_epi32(acc, a, b); }
constexpr bool kTakesSigned = false, kTakesUnsigned = true;
// Makes the compiler hold x in a register, where it would rather load it again with every use, and forget what it is.
inline void keep(I32& x) { asm volatile("" : "+v"(x)); }

inline I32 load_bytes(const uint8_t* p, int64_t n) { return _mm512_maskz_loadu_epi8(first_bytes(n), p); }
inline void put_bytes(uint8_t* p, I32 x) { _mm512_storeu_si512(p, x); }
inline void put_bytes(uint8_t* p, I32 x, int64_t n) { _mm512_mask_storeu_epi8(p, first_bytes(n), x); }
inline I32 splat(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline I32 max_s8(I32 a, I32 b) { return _mm512_max_epi8(a, b); }
inline I32 min_s8(I32 a, I32 b) { return _mm512_min_epi8(a, b); }
inline I32 max_u8(I32 a, I32 b) { return _mm512_max_epu8(a, b); }
inline I32 min_u8(I32 a, I32 b) { return _mm512_min_epu8(a, b); }

// A vector of bytes may consist of kParts parts of equal size that lie in different places, n bytes of each.
template <int kParts>
inline I32 load_parts(const uint8_t* const* p, int64_t n) {
  static_assert(kParts == 1 || kParts == 2 || kParts == 4);
  if constexpr (kParts == 1) return n == 64 ? load_bytes(p[0]) : load_bytes(p[0], n);
  if constexpr (kParts == 2) {
    const __mmask32 mask = static_cast<__mmask32>(first_bytes(n));
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi8(mask, p[0])),
                              _mm256_maskz_loadu_epi8(mask, p[1]), 1);
  }
  if constexpr (kParts == 4) {
    const __mmask16 mask = first(n);
    I32 x = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(mask, p[0]));
    x = _mm512_inserti32x4(x, _mm_maskz_loadu_epi8(mask, p[1]), 1);
    x = _mm512_inserti32x4(x, _mm_maskz_loadu_epi8(mask, p[2]), 2);
    return _mm512_inserti32x4(x, _mm_maskz_loadu_epi8(mask, p[3]), 3);
  }
}
template <int kParts>
inline void store_parts(uint8_t* const* p, I32 x, int64_t n) {
  static_assert(kParts == 1 || kParts == 2 || kParts == 4);
  if constexpr (kParts == 1) return n == 64 ? put_bytes(p[0], x) : put_bytes(p[0], x, n);
  if constexpr (kParts == 2) {
    const __mmask32 mask = static_cast<__mmask32>(first_bytes(n));
    _mm256_mask_storeu_epi8(p[0], mask, _mm512_castsi512_si256(x));
    _mm256_mask_storeu_epi8(p[1], mask, _mm512_extracti64x4_epi64(x, 1));
  }
  if constexpr (kParts == 4) {
    const __mmask16 mask = first(n);
    _mm_mask_storeu_epi8(p[0], mask, _mm512_castsi512_si128(x));
    _mm_mask_storeu_epi8(p[1], mask, _mm512_extracti32x4_epi32(x, 1));
    _mm_mask_storeu_epi8(p[2], mask, _mm512_extracti32x4_epi32(x, 2));
    _mm_mask_storeu_epi8(p[3], mask, _mm512_extracti32x4_epi32(x, 3));
  }
}

// Quad order: with 4 * kLanes channels in 4 vectors of 32-bit lanes, lane i of vector v is channel
// i / 4 * 16 + v * 4 + i % 4. What 128-bit shuffles do at once.
//
// 4 rows of bytes to 4 vectors in quad order; the 4 bytes of a lane are those of the 4 rows.
inline void interleave(I32 r0, I32 r1, I32 r2, I32 r3, I32* out) {
  const I32 low01 = _mm512_unpacklo_epi8(r0, r1), high01 = _mm512_unpackhi_epi8(r0, r1);
  const I32 low23 = _mm512_unpacklo_epi8(r2, r3), high23 = _mm512_unpackhi_epi8(r2, r3);
  out[0] = _mm512_unpacklo_epi16(low01, low23);
  out[1] = _mm512_unpackhi_epi16(low01, low23);
  out[2] = _mm512_unpacklo_epi16(high01, high23);
  out[3] = _mm512_unpackhi_epi16(high01, high23);
}
// 4 vectors in quad order to bytes in order, saturating.
inline I32 quads_to_s8(I32 a, I32 b, I32 c, I32 d) {
  return _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}
inline I32 quads_to_u8(I32 a, I32 b, I32 c, I32 d) {
  return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}
// What follows it where the 4 vectors were in order.
inline I32 in_order(I32 x) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
}

// n bytes, each xor-ed with flip.
inline void copy_bytes(uint8_t* to, const uint8_t* from, int64_t n, uint8_t flip) {
  const __m512i mask = _mm512_set1_epi8(static_cast<char>(flip));
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) _mm512_storeu_si512(to + i, _mm512_xor_si512(_mm512_loadu_si512(from + i), mask));
  if (i < n) {
    const __mmask64 rest = first_bytes(n - i);
    _mm512_mask_storeu_epi8(to + i, rest, _mm512_xor_si512(_mm512_maskz_loadu_epi8(rest, from + i), mask));
  }
}
inline void fill_bytes(uint8_t* to, int64_t n, uint8_t value) {
  const __m512i x = _mm512_set1_epi8(static_cast<char>(value));
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) _mm512_storeu_si512(to + i, x);
  if (i < n) _mm512_mask_storeu_epi8(to + i, first_bytes(n - i), x);
}

// to[i] = table[from[i]] for rows of n bytes; `to` may be `from`. Where the CPU permutes bytes (VBMI), 64 at once.
__attribute__((target("avx512vbmi"))) inline void look_up_by_permutation(uint8_t* to, int64_t to_stride,
                                                                         const uint8_t* from, int64_t from_stride,
                                                                         int64_t rows, int64_t n,
                                                                         const uint8_t* table) {
  const __m512i t0 = _mm512_loadu_si512(table), t1 = _mm512_loadu_si512(table + 64);
  const __m512i t2 = _mm512_loadu_si512(table + 128), t3 = _mm512_loadu_si512(table + 192);
  for (int64_t r = 0; r < rows; ++r, to += to_stride, from += from_stride) {
    for (int64_t i = 0; i < n; i += 64) {
      const __mmask64 rest = first_bytes(n - i);
      const __m512i x = _mm512_maskz_loadu_epi8(rest, from + i);
      const __m512i low = _mm512_permutex2var_epi8(t0, x, t1), high = _mm512_permutex2var_epi8(t2, x, t3);
      _mm512_mask_storeu_epi8(to + i, rest, _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high));
    }
  }
}
inline void look_up(uint8_t* to, int64_t to_stride, const uint8_t* from, int64_t from_stride, int64_t rows, int64_t n,
                    const uint8_t* table) {
  static const bool permutes = __builtin_cpu_supports("avx512vbmi");
  if (permutes) return look_up_by_permutation(to, to_stride, from, from_stride, rows, n, table);
  look_up_one_by_one(to, to_stride, from, from_stride, rows, n, table);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
