// The vectors of Arm with dot products (Armv8.2-A and later): 4 lanes of 32 bits.
#pragma once
#include <arm_neon.h>

#include "pieces.h"

namespace jaxq {
namespace JAXQ_ISA {

constexpr int kLanes = 4;
constexpr int kWidth = 4 * kLanes;
// See simd_avx512.h. 32 registers.
constexpr int kWide = 1, kFewRows = 1, kManyBlocks = 4, kColumns = 6, kColumnsOfTwo = 3;
constexpr int rows_of(int) { return 6; }
using I32 = int32x4_t;
using F32 = float32x4_t;

inline I32 zero() { return vdupq_n_s32(0); }
inline I32 all(int32_t x) { return vdupq_n_s32(x); }
inline F32 all(float x) { return vdupq_n_f32(x); }
inline I32 load(const int32_t* p) { return vld1q_s32(p); }
inline F32 load(const float* p) { return vld1q_f32(p); }
inline F32 load(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  F32 x = vdupq_n_f32(0);
  if (n > 0) x = vld1q_lane_f32(p, x, 0);
  if (n > 1) x = vld1q_lane_f32(p + 1, x, 1);
  if (n > 2) x = vld1q_lane_f32(p + 2, x, 2);
  return x;
}
inline void store(int32_t* p, I32 x) { vst1q_s32(p, x); }
inline void store(float* p, F32 x) { vst1q_f32(p, x); }
inline void store(float* p, F32 x, int64_t n) {
  if (n >= kLanes) return store(p, x);
  if (n > 0) vst1q_lane_f32(p, x, 0);
  if (n > 1) vst1q_lane_f32(p + 1, x, 1);
  if (n > 2) vst1q_lane_f32(p + 2, x, 2);
}

// The first n <= 4 bytes, widened.
inline I32 widen_s8(const uint8_t* p, int64_t n) {
  const uint64_t bytes = n >= 4 ? read<uint32_t>(p) : load_piece(p, n);
  return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(bytes))));
}
inline I32 widen_u8(const uint8_t* p, int64_t n) {
  const uint64_t bytes = n >= 4 ? read<uint32_t>(p) : load_piece(p, n);
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes)))));
}
inline I32 widen_s8(const uint8_t* p) { return widen_s8(p, kLanes); }
inline I32 widen_u8(const uint8_t* p) { return widen_u8(p, kLanes); }
// The first n lanes, which hold values of that type, as bytes.
inline void store_bytes(uint8_t* p, I32 x, int64_t n) {
  const int16x4_t narrow = vmovn_s32(x);
  const int8x8_t bytes = vmovn_s16(vcombine_s16(narrow, narrow));
  store_piece(p, vget_lane_u64(vreinterpret_u64_s8(bytes), 0), n < kLanes ? n : kLanes);
}

inline I32 add(I32 a, I32 b) { return vaddq_s32(a, b); }
inline I32 bit_xor(I32 a, I32 b) { return veorq_s32(a, b); }
inline I32 bit_or(I32 a, I32 b) { return vorrq_s32(a, b); }
inline I32 shift_left(I32 x, int bits) { return vshlq_s32(x, vdupq_n_s32(bits)); }
inline I32 shift_right(I32 x, int bits) {  // logical
  return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x), vdupq_n_s32(-bits)));
}
inline I32 shift_right_signed(I32 x, int bits) { return vshlq_s32(x, vdupq_n_s32(-bits)); }
inline I32 mul(I32 a, I32 b) { return vmulq_s32(a, b); }
inline F32 add(F32 a, F32 b) { return vaddq_f32(a, b); }
inline F32 sub(F32 a, F32 b) { return vsubq_f32(a, b); }
inline F32 mul(F32 a, F32 b) { return vmulq_f32(a, b); }
inline F32 div(F32 a, F32 b) { return vdivq_f32(a, b); }
// b where a value is not a number, like on x86.
inline F32 min(F32 a, F32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline F32 max(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F32 to_float(I32 x) { return vcvtq_f32_s32(x); }
// Half to even.
inline I32 round(F32 x) { return vcvtnq_s32_f32(x); }
inline F32 round_to_float(F32 x) { return vrndnq_f32(x); }
inline F32 zero_where_nan(F32 x) { return vbslq_f32(vceqq_f32(x, x), x, vdupq_n_f32(0)); }
inline F32 mul_add(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
inline F32 times_power_of_two(F32 x, F32 n) {
  const I32 exponent = vmaxq_s32(add(round(n), all(127)), zero());  // 0: a factor of 0
  return mul(x, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}
inline F32 first_lanes(F32 x, F32 y, int64_t n) {
  const int32_t numbers[4] = {0, 1, 2, 3};
  return vbslq_f32(vcltq_s32(vld1q_s32(numbers), vdupq_n_s32(static_cast<int32_t>(n))), x, y);
}
inline float total(F32 x) { return vaddvq_f32(x); }
inline float largest(F32 x) { return vmaxnmvq_f32(x); }

// 4 bytes in every lane.
inline I32 all_bytes(const uint8_t* p) { return vdupq_n_s32(read<int32_t>(p)); }
inline I32 load_bytes(const uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
// acc + the sum over the 4 bytes of each lane of a (signed here, see kTakesSigned) * b (signed).
inline I32 dot4(I32 acc, I32 a, I32 b) { return vdotq_s32(acc, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); }
constexpr bool kTakesSigned = true, kTakesUnsigned = false;
// Makes the compiler hold x in a register, where it would rather load it again with every use, and forget what it is.
inline void keep(I32& x) { asm volatile("" : "+w"(x)); }

inline I32 load_bytes(const uint8_t* p, int64_t n) {
  if (n >= kWidth) return load_bytes(p);
  const uint64_t low = load_piece(p, n), high = n > 8 ? load_piece(p + 8, n - 8) : 0;
  return vreinterpretq_s32_u64(vcombine_u64(vcreate_u64(low), vcreate_u64(high)));
}
inline void put_bytes(uint8_t* p, I32 x) { vst1q_u8(p, vreinterpretq_u8_s32(x)); }
inline void put_bytes(uint8_t* p, I32 x, int64_t n) {
  if (n >= kWidth) return put_bytes(p, x);
  const uint64x2_t both = vreinterpretq_u64_s32(x);
  store_piece(p, vgetq_lane_u64(both, 0), n);
  if (n > 8) store_piece(p + 8, vgetq_lane_u64(both, 1), n - 8);
}
inline int8x16_t as_s8(I32 x) { return vreinterpretq_s8_s32(x); }
inline uint8x16_t as_u8(I32 x) { return vreinterpretq_u8_s32(x); }
inline I32 splat(uint8_t x) { return vreinterpretq_s32_u8(vdupq_n_u8(x)); }
inline I32 max_s8(I32 a, I32 b) { return vreinterpretq_s32_s8(vmaxq_s8(as_s8(a), as_s8(b))); }
inline I32 min_s8(I32 a, I32 b) { return vreinterpretq_s32_s8(vminq_s8(as_s8(a), as_s8(b))); }
inline I32 max_u8(I32 a, I32 b) { return vreinterpretq_s32_u8(vmaxq_u8(as_u8(a), as_u8(b))); }
inline I32 min_u8(I32 a, I32 b) { return vreinterpretq_s32_u8(vminq_u8(as_u8(a), as_u8(b))); }

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
inline void interleave(I32 r0, I32 r1, I32 r2, I32 r3, I32* out) {
  const uint16x8_t low01 = vreinterpretq_u16_u8(vzip1q_u8(as_u8(r0), as_u8(r1)));
  const uint16x8_t high01 = vreinterpretq_u16_u8(vzip2q_u8(as_u8(r0), as_u8(r1)));
  const uint16x8_t low23 = vreinterpretq_u16_u8(vzip1q_u8(as_u8(r2), as_u8(r3)));
  const uint16x8_t high23 = vreinterpretq_u16_u8(vzip2q_u8(as_u8(r2), as_u8(r3)));
  out[0] = vreinterpretq_s32_u16(vzip1q_u16(low01, low23));
  out[1] = vreinterpretq_s32_u16(vzip2q_u16(low01, low23));
  out[2] = vreinterpretq_s32_u16(vzip1q_u16(high01, high23));
  out[3] = vreinterpretq_s32_u16(vzip2q_u16(high01, high23));
}
inline int16x8_t narrow(I32 a, I32 b) { return vcombine_s16(vqmovn_s32(a), vqmovn_s32(b)); }
inline I32 quads_to_s8(I32 a, I32 b, I32 c, I32 d) {
  return vreinterpretq_s32_s8(vcombine_s8(vqmovn_s16(narrow(a, b)), vqmovn_s16(narrow(c, d))));
}
inline I32 quads_to_u8(I32 a, I32 b, I32 c, I32 d) {
  return vreinterpretq_s32_u8(vcombine_u8(vqmovun_s16(narrow(a, b)), vqmovun_s16(narrow(c, d))));
}
inline I32 in_order(I32 x) { return x; }

// n bytes, each xor-ed with flip.
inline void copy_bytes(uint8_t* to, const uint8_t* from, int64_t n, uint8_t flip) {
  const uint8x16_t mask = vdupq_n_u8(flip);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) vst1q_u8(to + i, veorq_u8(vld1q_u8(from + i), mask));
  for (; i < n; i += 8) store_piece(to + i, load_piece(from + i, n - i) ^ eight(flip), n - i);
}
inline void fill_bytes(uint8_t* to, int64_t n, uint8_t value) {
  const uint8x16_t x = vdupq_n_u8(value);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) vst1q_u8(to + i, x);
  for (; i < n; i += 8) store_piece(to + i, eight(value), n - i);
}

// to[i] = table[from[i]] for rows of n bytes, 16 at once; `to` may be `from`.
inline void look_up(uint8_t* to, int64_t to_stride, const uint8_t* from, int64_t from_stride, int64_t rows, int64_t n,
                    const uint8_t* table) {
  const uint8x16x4_t t0 = vld1q_u8_x4(table), t1 = vld1q_u8_x4(table + 64);
  const uint8x16x4_t t2 = vld1q_u8_x4(table + 128), t3 = vld1q_u8_x4(table + 192);
  const uint8x16_t next = vdupq_n_u8(64);
  for (int64_t r = 0; r < rows; ++r, to += to_stride, from += from_stride) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      uint8x16_t x = vld1q_u8(from + i), y = vqtbl4q_u8(t0, x);  // 0 where the index is too large
      y = vqtbx4q_u8(y, t1, x = vsubq_u8(x, next));
      y = vqtbx4q_u8(y, t2, x = vsubq_u8(x, next));
      vst1q_u8(to + i, vqtbx4q_u8(y, t3, vsubq_u8(x, next)));
    }
    for (; i < n; ++i) to[i] = table[from[i]];
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
