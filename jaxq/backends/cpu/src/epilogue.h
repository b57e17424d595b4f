// numerics.epilogue over accumulators in order, 16 channels and more of a row at a time.
//
// The bounds of an integer output are integers of its type, and rounding is monotone: the values are rounded first and
// clipped as bytes. Products beyond the finite floats become the largest of these: seen only in float outputs.
#pragma once

#include <cfloat>

namespace jaxq {
namespace JAXQ_ISA {

// Above every bound that an integer output has, and below what rounding to int32 holds.
constexpr float kLargest = 1e9f;

inline bool is_signed(const Epilogue& e) { return e.table || e.out_dtype == DType::s8; }

inline float one_as_float(const uint8_t* p, DType dtype) {
  if (dtype == DType::s8) return *reinterpret_cast<const int8_t*>(p);
  if (dtype == DType::u8) return *p;
  return *reinterpret_cast<const float*>(p);
}

inline const uint8_t* residual_row(const Epilogue& e, int64_t row) {
  if (e.residual_repeat != 1) row /= e.residual_repeat;
  if (row >= e.residual_period) row %= e.residual_period;
  return e.residual + row * e.residual_stride;
}

// Channels [at, at + n) of the residual's row, n <= kLanes.
inline F32 residual_of(const Epilogue& e, int64_t row, int64_t at, int64_t n) {
  const uint8_t* p = residual_row(e, row);
  if (!e.residual_step) return all(one_as_float(p, e.residual_dtype));
  if (e.residual_dtype == DType::s8) return to_float(widen_s8(p + at, n));
  if (e.residual_dtype == DType::u8) return to_float(widen_u8(p + at, n));
  return load(reinterpret_cast<const float*>(p) + at, n);
}

enum class Residual { none, s8, u8, other };

// n <= kLanes bytes, exactly so many if kFull.
template <bool kFull>
JAXQ_INLINE inline I32 widened(const uint8_t* p, DType dtype, int64_t n) {
  if constexpr (kFull) return dtype == DType::s8 ? widen_s8(p) : widen_u8(p);
  return dtype == DType::s8 ? widen_s8(p, n) : widen_u8(p, n);
}

// Accumulators in memory, `ld` apart.
struct InMemory {
  const int32_t* acc;
  int64_t ld;
  template <bool kFull>
  I32 get(int64_t row, int64_t channel, int64_t /*n*/) const {
    return load(acc + row * ld + channel);
  }
};

// kVectors vectors of channels (c of the source's, channel + c of the output's), of 4 / kVectors rows at a time.
template <Residual residual, int kVectors, bool kFull, class Source>
void finish_bytes(const Source& source, const Epilogue& e, int64_t row, int64_t rows, int64_t channel, int64_t c,
                  int64_t n) {
  constexpr int kRows = 4 / kVectors;
  const int64_t at = channel + c;
  F32 multiplier[kVectors], bias[kVectors];
  I32 lo[4], hi[4];
  int64_t counts[kVectors];
  JAXQ_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const int64_t rest = n - v * kLanes;
    counts[v] = kFull || rest > kLanes ? kLanes : rest < 0 ? 0 : rest;
    const int64_t from = counts[v] ? at + v * kLanes : at;
    multiplier[v] = load(e.multiplier + from, counts[v]);
    bias[v] = load(e.bias + from, counts[v]);
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      lo[i * kVectors + v] = round(load(e.lo + from, counts[v]));
      hi[i * kVectors + v] = round(load(e.hi + from, counts[v]));
    }
  }
  const bool s8 = is_signed(e);
  const I32 least = in_order(s8 ? quads_to_s8(lo[0], lo[1], lo[2], lo[3]) : quads_to_u8(lo[0], lo[1], lo[2], lo[3]));
  const I32 most = in_order(s8 ? quads_to_s8(hi[0], hi[1], hi[2], hi[3]) : quads_to_u8(hi[0], hi[1], hi[2], hi[3]));
  const F32 factor = all(e.residual_multiplier), largest = all(kLargest);
  for (int64_t r = 0; r < rows; r += kRows) {
    I32 q[4];
    uint8_t* out[kRows];
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const int64_t this_row = r + i < rows ? r + i : rows - 1;  // the last one again
      out[i] = e.out + (row + this_row) * e.out_stride + at;
      JAXQ_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const int64_t count = kFull ? kLanes : counts[v];
        F32 y = add(mul(to_float(source.template get<kFull>(this_row, c + v * kLanes, count)), multiplier[v]), bias[v]);
        if constexpr (residual == Residual::other) {
          y = add(y, mul(residual_of(e, row + this_row, at + v * kLanes, count), factor));
        } else if constexpr (residual != Residual::none) {
          const uint8_t* p = residual_row(e, row + this_row) + at + v * kLanes;
          y = add(y, mul(to_float(widened<kFull>(p, residual == Residual::s8 ? DType::s8 : DType::u8, count)), factor));
        }
        q[i * kVectors + v] = round(min(y, largest));
      }
    }
    const I32 bytes = s8 ? min_s8(max_s8(in_order(quads_to_s8(q[0], q[1], q[2], q[3])), least), most)
                         : min_u8(max_u8(in_order(quads_to_u8(q[0], q[1], q[2], q[3])), least), most);
    store_parts<kRows>(out, bytes, kFull ? kVectors * kLanes : n);
  }
}

template <int kVectors, bool kFull, class Source>
void finish_with_residual(const Source& source, const Epilogue& e, int64_t row, int64_t rows, int64_t channel,
                          int64_t c, int64_t n) {
  if (!e.residual) {
    finish_bytes<Residual::none, kVectors, kFull>(source, e, row, rows, channel, c, n);
  } else if (e.residual_step && e.residual_dtype == DType::s8) {
    finish_bytes<Residual::s8, kVectors, kFull>(source, e, row, rows, channel, c, n);
  } else if (e.residual_step && e.residual_dtype == DType::u8) {
    finish_bytes<Residual::u8, kVectors, kFull>(source, e, row, rows, channel, c, n);
  } else {
    finish_bytes<Residual::other, kVectors, kFull>(source, e, row, rows, channel, c, n);
  }
}

template <class Source>
void finish_floats(const Source& source, const Epilogue& e, int64_t row, int64_t rows, int64_t channel, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes) {
    const int64_t at = channel + c, count = n - c < kLanes ? n - c : kLanes;
    const F32 multiplier = load(e.multiplier + at, count), bias = load(e.bias + at, count);
    const F32 lo = load(e.lo + at, count), hi = load(e.hi + at, count), factor = all(e.residual_multiplier);
    const F32 least = all(-FLT_MAX), largest = all(FLT_MAX);
    const auto product = [&](F32 a, F32 b) { return min(largest, max(least, mul(a, b))); };
    for (int64_t r = 0; r < rows; ++r) {
      F32 y = add(product(to_float(source.template get<false>(r, c, count)), multiplier), bias);
      if (e.residual) y = add(y, product(residual_of(e, row + r, at, count), factor));
      y = min(hi, max(lo, y));  // NaN stays
      store(reinterpret_cast<float*>(e.out + (row + r) * e.out_stride) + at, y, count);
    }
  }
}

// The accumulators that source.get(row, channel, n) gives vectors of, to the rows from `row` on and the channels from `channel`
// on. A source counts both from 0; it may be asked for whole vectors up to n rounded up to 16.
template <class Source>
void finish(const Source& source, const Epilogue& e, int64_t row, int64_t rows, int64_t channel, int64_t n) {
  if (e.out_dtype == DType::f32) return finish_floats(source, e, row, rows, channel, n);
  for (int64_t c = 0; c < n;) {
    const int64_t rest = n - c, whole = round_up(rest, kBlock);
    if (rest >= 4 * kLanes) {
      finish_with_residual<4, true>(source, e, row, rows, channel, c, 4 * kLanes);
      c += 4 * kLanes;
    } else if (whole >= 4 * kLanes) {
      finish_with_residual<4, false>(source, e, row, rows, channel, c, rest);
      c += rest;
    } else {
      if constexpr (kLanes >= 8) {
        if (whole >= 2 * kLanes) {
          const int64_t count = rest < 2 * kLanes ? rest : 2 * kLanes;
          if (count == 2 * kLanes) {
            finish_with_residual<2, true>(source, e, row, rows, channel, c, count);
          } else {
            finish_with_residual<2, false>(source, e, row, rows, channel, c, count);
          }
          c += count;
          continue;
        }
      }
      if constexpr (kLanes == 16) {
        if (rest == kLanes) {
          finish_with_residual<1, true>(source, e, row, rows, channel, c, rest);
        } else {
          finish_with_residual<1, false>(source, e, row, rows, channel, c, rest);
        }
      }
      c += rest;
    }
  }
  if (e.table) {
    uint8_t* out = e.out + row * e.out_stride + channel;
    if (e.out_stride == n) {
      look_up(out, 0, out, 0, 1, rows * n, e.table);
    } else {
      look_up(out, e.out_stride, out, e.out_stride, rows, n, e.table);
    }
  }
}

// Accumulators `acc` (rows x n, `ld` apart, readable to a multiple of 16 channels) of the rows from `row` on and the
// channels from `channel` on.
inline void epilogue(const int32_t* acc, int64_t ld, const Epilogue& e, int64_t row, int64_t rows, int64_t channel,
                     int64_t n) {
  finish(InMemory{acc, ld}, e, row, rows, channel, n);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
