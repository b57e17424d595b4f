// The vectors of AVX512-VNNI: 16 lanes of 32 bits.
#pragma once
#include <immintrin.h>

#include "kernels.h"

namespace jaxq {
namespace JAXQ_ISA {

constexpr int kLanes = 16;
// Blocks of 16 channels that a piece of the matrix product takes at once, and its rows at most: their sums stay in
// registers. Few rows take more blocks.
constexpr int kWide = 3, kFewRows = 3, kManyBlocks = 8;
constexpr int rows_of(int blocks) { return blocks > 3 ? 6 : blocks > 2 ? 9 : 12; }
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
// The first n lanes, which hold values of that type, as bytes.
inline void store_bytes(uint8_t* p, I32 x, int64_t n) {
  _mm_mask_storeu_epi8(p, first(n), _mm512_cvtepi32_epi8(x));
}

inline I32 add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
inline I32 mul(I32 a, I32 b) { return _mm512_mullo_epi32(a, b); }
inline F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
inline F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
inline F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
inline F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
inline F32 to_float(I32 x) { return _mm512_cvtepi32_ps(x); }
// Half to even.
inline I32 round(F32 x) { return _mm512_cvtps_epi32(x); }

// 4 bytes in every lane.
inline I32 all_bytes(const uint8_t* p) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(p)); }
inline I32 load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
// acc + the sum over the 4 bytes of each lane of a (unsigned here, see kTakesSigned) * b (signed).
inline I32 dot4(I32 acc, I32 a, I32 b) { return _mm512_dpbusd_epi32(acc, a, b); }
constexpr bool kTakesSigned = false, kTakesUnsigned = true;
// A value that the compiler knows nothing of, in a register.
inline void keep(I32& x) { asm volatile("" : "+v"(x)); }

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
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < n; ++i) to[r * to_stride + i] = table[from[r * from_stride + i]];
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
