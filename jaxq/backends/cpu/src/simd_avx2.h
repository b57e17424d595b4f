// The vectors of AVX2: 8 lanes of 32 bits; with the dot product of AVX-VNNI where the file is compiled for it.
#pragma once
#include <immintrin.h>

#include "pieces.h"

namespace jaxq {
namespace JAXQ_ISA {

constexpr int kLanes = 8;
constexpr int kWidth = 4 * kLanes;
// See simd_avx512.h. 16 registers.
constexpr int kWide = 1, kFewRows = 1, kManyBlocks = 4, kColumns = 2, kColumnsOfTwo = 1;
#ifdef __AVXVNNI__
constexpr int rows_of(int) { return 6; }
#else
constexpr int rows_of(int) { return 5; }
#endif
using I32 = __m256i;
using F32 = __m256;

inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < kLanes ? static_cast<int>(n) : kLanes),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline I32 zero() { return _mm256_setzero_si256(); }
inline I32 all(int32_t x) { return _mm256_set1_epi32(x); }
inline F32 all(float x) { return _mm256_set1_ps(x); }
inline I32 load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline F32 load(const float* p) { return _mm256_loadu_ps(p); }
inline F32 load(const float* p, int64_t n) { return n >= kLanes ? load(p) : _mm256_maskload_ps(p, first(n)); }
inline void store(int32_t* p, I32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
inline void store(float* p, F32 x) { _mm256_storeu_ps(p, x); }
inline void store(float* p, F32 x, int64_t n) {
  if (n >= kLanes) return store(p, x);
  _mm256_maskstore_ps(p, first(n), x);
}

// The first n <= 8 bytes, widened.
inline I32 widen_s8(const uint8_t* p, int64_t n) {
  return _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(static_cast<long long>(load_piece(p, n))));
}
inline I32 widen_u8(const uint8_t* p, int64_t n) {
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(load_piece(p, n))));
}
inline I32 widen_s8(const uint8_t* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline I32 widen_u8(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
// The first n lanes, which hold values of that type, as bytes.
inline void store_bytes(uint8_t* p, I32 x, int64_t n) {
  const __m256i lowest = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                          0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i bytes = _mm256_shuffle_epi8(x, lowest);
  const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  store_piece(p, static_cast<uint64_t>(_mm_cvtsi128_si64(both)), n);
}

inline I32 add(I32 a, I32 b) { return _mm256_add_epi32(a, b); }
inline I32 bit_xor(I32 a, I32 b) { return _mm256_xor_si256(a, b); }
inline I32 bit_or(I32 a, I32 b) { return _mm256_or_si256(a, b); }
inline I32 shift_left(I32 x, int bits) { return _mm256_slli_epi32(x, bits); }
inline I32 shift_right(I32 x, int bits) { return _mm256_srli_epi32(x, bits); }  // logical
inline I32 shift_right_signed(I32 x, int bits) { return _mm256_srai_epi32(x, bits); }
inline I32 mul(I32 a, I32 b) { return _mm256_mullo_epi32(a, b); }
inline F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
inline F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
inline F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
inline F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
inline F32 to_float(I32 x) { return _mm256_cvtepi32_ps(x); }
// Half to even.
inline I32 round(F32 x) { return _mm256_cvtps_epi32(x); }
inline F32 round_to_float(F32 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F32 zero_where_nan(F32 x) { return _mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q)); }
inline F32 mul_add(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
inline F32 times_power_of_two(F32 x, F32 n) {
  const I32 exponent = _mm256_max_epi32(add(round(n), all(127)), zero());  // 0: a factor of 0
  return mul(x, _mm256_castsi256_ps(shift_left(exponent, 23)));
}
inline F32 first_lanes(F32 x, F32 y, int64_t n) { return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(first(n))); }
inline float total(F32 x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}
inline float largest(F32 x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

// 4 bytes in every lane.
inline I32 all_bytes(const uint8_t* p) { return _mm256_set1_epi32(read<int32_t>(p)); }
inline I32 load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
// acc + the sum over the 4 bytes of each lane of a (unsigned here, see kTakesSigned) * b (signed).
#ifdef __AVXVNNI__
inline I32 dot4(I32 acc, I32 a, I32 b) { return _mm256_dpbusd_avx_epi32(acc, a, b); }
#else
inline I32 dot4(I32 acc, I32 a, I32 b) {  // of 16-bit values: vpmaddubsw saturates
  const I32 a0 = _mm256_and_si256(a, _mm256_set1_epi16(255)), a1 = _mm256_srli_epi16(a, 8);
  const I32 b0 = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), b1 = _mm256_srai_epi16(b, 8);
  return add(add(acc, _mm256_madd_epi16(a0, b0)), _mm256_madd_epi16(a1, b1));
}
#endif
constexpr bool kTakesSigned = false, kTakesUnsigned = true;
// Makes the compiler hold x in a register, where it would rather load it again with every use, and forget what it is.
inline void keep(I32& x) { asm volatile("" : "+x"(x)); }

inline __m128i load_half(const uint8_t* p, int64_t n) {
  if (n >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const uint64_t low = load_piece(p, n), high = n > 8 ? load_piece(p + 8, n - 8) : 0;
  return _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
}
inline void put_half(uint8_t* p, __m128i x, int64_t n) {
  if (n >= 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x);
  store_piece(p, static_cast<uint64_t>(_mm_cvtsi128_si64(x)), n);
  if (n > 8) store_piece(p + 8, static_cast<uint64_t>(_mm_extract_epi64(x, 1)), n - 8);
}
inline I32 load_bytes(const uint8_t* p, int64_t n) {
  if (n >= kWidth) return load_bytes(p);
  const __m128i low = load_half(p, n), high = n > 16 ? load_half(p + 16, n - 16) : _mm_setzero_si128();
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}
inline void put_bytes(uint8_t* p, I32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
inline void put_bytes(uint8_t* p, I32 x, int64_t n) {
  if (n >= kWidth) return put_bytes(p, x);
  put_half(p, _mm256_castsi256_si128(x), n);
  if (n > 16) put_half(p + 16, _mm256_extracti128_si256(x, 1), n - 16);
}
inline I32 splat(uint8_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
inline I32 max_s8(I32 a, I32 b) { return _mm256_max_epi8(a, b); }
inline I32 min_s8(I32 a, I32 b) { return _mm256_min_epi8(a, b); }
inline I32 max_u8(I32 a, I32 b) { return _mm256_max_epu8(a, b); }
inline I32 min_u8(I32 a, I32 b) { return _mm256_min_epu8(a, b); }

// A vector of bytes may consist of kParts parts of equal size that lie in different places, n bytes of each.
template <int kParts>
inline I32 load_parts(const uint8_t* const* p, int64_t n) {
  static_assert(kParts == 1 || kParts == 2);
  if constexpr (kParts == 1) return load_bytes(p[0], n);
  if constexpr (kParts == 2) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_half(p[0], n)), load_half(p[1], n), 1);
  }
}
template <int kParts>
inline void store_parts(uint8_t* const* p, I32 x, int64_t n) {
  static_assert(kParts == 1 || kParts == 2);
  if constexpr (kParts == 1) return put_bytes(p[0], x, n);
  if constexpr (kParts == 2) {
    put_half(p[0], _mm256_castsi256_si128(x), n);
    put_half(p[1], _mm256_extracti128_si256(x, 1), n);
  }
}

// Quad order: see simd_avx512.h.
inline void interleave(I32 r0, I32 r1, I32 r2, I32 r3, I32* out) {
  const I32 low01 = _mm256_unpacklo_epi8(r0, r1), high01 = _mm256_unpackhi_epi8(r0, r1);
  const I32 low23 = _mm256_unpacklo_epi8(r2, r3), high23 = _mm256_unpackhi_epi8(r2, r3);
  out[0] = _mm256_unpacklo_epi16(low01, low23);
  out[1] = _mm256_unpackhi_epi16(low01, low23);
  out[2] = _mm256_unpacklo_epi16(high01, high23);
  out[3] = _mm256_unpackhi_epi16(high01, high23);
}
inline I32 quads_to_s8(I32 a, I32 b, I32 c, I32 d) {
  return _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
}
inline I32 quads_to_u8(I32 a, I32 b, I32 c, I32 d) {
  return _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
}
inline I32 in_order(I32 x) {
  return _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// n bytes, each xor-ed with flip.
inline void copy_bytes(uint8_t* to, const uint8_t* from, int64_t n, uint8_t flip) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(flip));
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_xor_si256(load_bytes(from + i), mask));
  }
  for (; i < n; i += 8) store_piece(to + i, load_piece(from + i, n - i) ^ eight(flip), n - i);
}
inline void fill_bytes(uint8_t* to, int64_t n, uint8_t value) {
  const __m256i x = _mm256_set1_epi8(static_cast<char>(value));
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), x);
  for (; i < n; i += 8) store_piece(to + i, eight(value), n - i);
}

inline void look_up(uint8_t* to, int64_t to_stride, const uint8_t* from, int64_t from_stride, int64_t rows, int64_t n,
                    const uint8_t* table) {
  look_up_one_by_one(to, to_stride, from, from_stride, rows, n, table);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
