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

// Where the residual of an output row lies, where there is one.
inline const uint8_t* residual_row(const Epilogue& e, int64_t row) {
  if (e.residual_period == 1) return e.residual;
  if (e.residual_repeat == 1 && row < e.residual_period) return e.residual + row * e.residual_stride;
  return e.residual + row / e.residual_repeat % e.residual_period * e.residual_stride;
}

// Channels [at, at + n) of the residual's row p, n <= kLanes.
inline F32 residual_of(const Epilogue& e, const uint8_t* p, int64_t at, int64_t n) {
  if (!e.residual_step) return all(one_as_float(p, e.residual_dtype));
  if (e.residual_dtype == DType::s8) return to_float(widen_s8(p + at, n));
  if (e.residual_dtype == DType::u8) return to_float(widen_u8(p + at, n));
  return load(reinterpret_cast<const float*>(p) + at, n);
}

enum class Residual { none, bytes, other };

inline Residual residual_kind(const Epilogue& e) {
  if (!e.residual) return Residual::none;
  return e.residual_step && e.residual_dtype != DType::f32 ? Residual::bytes : Residual::other;
}

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

// n <= kWidth channels, c of the source's and `at` of the output's: what all their rows share, loaded once.
struct Channels {
  int64_t c, at, n;
  int vectors;  // of a row; 4 / vectors rows are finished at once
  bool is_signed, bounded;
  alignas(64) float multiplier[kWidth];
  alignas(64) float bias[kWidth];
  I32 least, most;  // the bounds as bytes, of the rows beside one another

  Channels() = default;
  Channels(const Epilogue& e, int64_t c, int64_t at, int64_t n)
      : c(c), at(at), n(n), vectors(vectors_of(n)) {
    is_signed = JAXQ_ISA::is_signed(e);
    const auto one = [&](const float* from, int v) {
      const int64_t rest = n - v * kLanes;
      return rest >= kLanes ? load(from + at + v * kLanes) : rest > 0 ? load(from + at + v * kLanes, rest) : all(0.0f);
    };
    F32 greatest = all(0.0f);
    for (int v = 0; v < vectors; ++v) {
      const F32 m = one(e.multiplier, v), b = one(e.bias, v);
      store(multiplier + v * kLanes, m);
      store(bias + v * kLanes, b);
      greatest = max(greatest, add(mul(magnitude(m), all(2147483648.0f)), magnitude(b)));
    }
    const float residual = e.residual ? 255 * __builtin_fabsf(e.residual_multiplier) : 0;
    bounded = largest(greatest) + residual <= kLargest;
    I32 lo[4], hi[4];
    for (int i = 0; i < 4; ++i) {
      lo[i] = round(one(e.lo, i % vectors));
      hi[i] = round(one(e.hi, i % vectors));
    }
    least = to_bytes(lo);
    most = to_bytes(hi);
  }

  I32 to_bytes(const I32* q) const {
    return in_order(is_signed ? quads_to_s8(q[0], q[1], q[2], q[3]) : quads_to_u8(q[0], q[1], q[2], q[3]));
  }
  I32 clipped(I32 bytes) const {
    return is_signed ? min_s8(max_s8(bytes, least), most) : min_u8(max_u8(bytes, least), most);
  }

 private:
  static F32 magnitude(F32 x) { return max(x, sub(all(0.0f), x)); }
  // So few that they hold n channels, and a block of the matrix product.
  static int vectors_of(int64_t n) {
    constexpr int kOfBlock = static_cast<int>(kBlock / kLanes);
    return n > 2 * kLanes ? 4 : n > kLanes && kOfBlock < 2 ? 2 : kOfBlock;
  }
};

// NaN stays.
inline F32 finite(F32 x) { return min(all(FLT_MAX), max(all(-FLT_MAX), x)); }

// A product with an accumulator times its row's scale.
inline F32 by_row(F32 product, bool bounded, F32 row_scale) {
  return finite(mul(bounded ? product : finite(product), row_scale));
}

// Vector v of a row's channels, `count` of them, before it is rounded to bytes; p: the row of the residual.
template <Residual residual, bool kFull, bool kByRow = false>
JAXQ_INLINE inline F32 finished(I32 acc, const Epilogue& e, const Channels& channels, const uint8_t* p, int v,
                                int64_t count, F32 row_scale = all(1.0f)) {
  F32 y = mul(to_float(acc), load(channels.multiplier + v * kLanes));
  if constexpr (kByRow) y = by_row(y, channels.bounded, row_scale);
  y = add(y, load(channels.bias + v * kLanes));
  if constexpr (residual == Residual::none) return y;
  const int64_t at = channels.at + v * kLanes;
  const F32 x = residual == Residual::bytes ? to_float(widened<kFull>(p + at, e.residual_dtype, count))
                                            : residual_of(e, p, at, count);
  return add(y, mul(x, all(e.residual_multiplier)));
}

// The rows from `row` on, 4 / kVectors at a time; n fills its vectors if kFull.
template <Residual residual, int kVectors, bool kFull, bool kByRow, class Source>
void finish_bytes(const Source& source, const Epilogue& e, const Channels& channels, int64_t row, int64_t rows) {
  constexpr int kRows = 4 / kVectors;
  int64_t counts[kVectors];
  JAXQ_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const int64_t rest = channels.n - v * kLanes;
    counts[v] = kFull || rest > kLanes ? kLanes : rest < 0 ? 0 : rest;
  }
  const F32 largest = all(kLargest);
  for (int64_t r = 0; r < rows; r += kRows) {
    F32 y[4];
    uint8_t* out[kRows];
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const int64_t this_row = r + i < rows ? r + i : rows - 1;  // the last one again
      out[i] = e.out + (row + this_row) * e.out_stride + channels.at;
      const uint8_t* p = residual == Residual::none ? nullptr : residual_row(e, row + this_row);
      const F32 row_scale = all(kByRow ? e.row_scale[row + this_row] : 1.0f);
      JAXQ_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const I32 acc = source.template get<kFull>(this_row, channels.c + v * kLanes, counts[v]);
        y[i * kVectors + v] = finished<residual, kFull, kByRow>(acc, e, channels, p, v, counts[v], row_scale);
      }
    }
    if (kByRow || !channels.bounded) {
      JAXQ_UNROLL
      for (int i = 0; i < 4; ++i) y[i] = min(y[i], largest);
    }
    const I32 q[4] = {round(y[0]), round(y[1]), round(y[2]), round(y[3])};
    store_parts<kRows>(out, channels.clipped(channels.to_bytes(q)), kFull ? kVectors * kLanes : channels.n);
  }
}

template <class Source>
using Finish = void (*)(const Source&, const Epilogue&, const Channels&, int64_t row, int64_t rows);

template <int kVectors, bool kFull, class Source>
Finish<Source> finish_with_residual(const Epilogue& e) {
  if (e.row_scale) {
    if (!e.residual) return finish_bytes<Residual::none, kVectors, kFull, true, Source>;
    return finish_bytes<Residual::other, kVectors, kFull, true, Source>;
  }
  switch (residual_kind(e)) {
    case Residual::none: return finish_bytes<Residual::none, kVectors, kFull, false, Source>;
    case Residual::bytes: return finish_bytes<Residual::bytes, kVectors, kFull, false, Source>;
    default: return finish_bytes<Residual::other, kVectors, kFull, false, Source>;
  }
}

// The function that finishes rows of those channels.
template <class Source>
Finish<Source> finish_of(const Epilogue& e, const Channels& channels) {
  const bool full = channels.n == channels.vectors * kLanes;
  if constexpr (kLanes == 16) {
    if (channels.vectors == 1) return full ? finish_with_residual<1, true, Source>(e) : finish_with_residual<1, false, Source>(e);
  }
  if constexpr (kLanes >= 8) {
    if (channels.vectors == 2) return full ? finish_with_residual<2, true, Source>(e) : finish_with_residual<2, false, Source>(e);
  }
  return full ? finish_with_residual<4, true, Source>(e) : finish_with_residual<4, false, Source>(e);
}

// What can be left out where the output is floats.
struct Floats {
  bool bounded = true;   // no product with an accumulator is beyond the finite floats
  bool clipped = false;  // some channel has a bound

  Floats(const Epilogue& e, int64_t channel, int64_t n) {
    const F32 none = all(0.0f), infinite = all(__builtin_inff());
    F32 factor = none, lo = sub(none, infinite), hi = infinite;
    for (int64_t c = channel; c < channel + n; c += kLanes) {
      const int64_t count = channel + n - c;
      const auto of_channels = [&](const float* values, F32 otherwise) {
        return count < kLanes ? first_lanes(load(values + c, count), otherwise, count) : load(values + c);
      };
      const F32 m = of_channels(e.multiplier, none);  // NaN, which comes first, is passed over
      factor = max(max(m, sub(none, m)), factor);
      lo = max(of_channels(e.lo, lo), lo);
      hi = min(of_channels(e.hi, hi), hi);
    }
    bounded = largest(factor) <= FLT_MAX / 4294967296.0f;
    clipped = largest(max(lo, sub(none, hi))) != -__builtin_inff();
  }
};

// Channels [at, at + count) of one row, a whole vector if kFull; p: the row of the residual.
template <bool kFull, bool kByRow>
JAXQ_INLINE inline void finish_float(I32 acc, const Epilogue& e, const Floats& floats, const uint8_t* p, float* out,
                                     int64_t at, int64_t count, F32 row_scale) {
  const auto of_channels = [&](const float* values) { return kFull ? load(values + at) : load(values + at, count); };
  F32 y = mul(to_float(acc), of_channels(e.multiplier));
  if constexpr (kByRow) {
    y = by_row(y, floats.bounded, row_scale);
  } else {
    y = floats.bounded ? y : finite(y);
  }
  y = add(y, of_channels(e.bias));
  if (p) y = add(y, finite(mul(residual_of(e, p, at, count), all(e.residual_multiplier))));
  if (floats.clipped) y = min(of_channels(e.hi), max(of_channels(e.lo), y));  // NaN stays
  if constexpr (kFull) return store(out + at, y);
  store(out + at, y, count);
}

template <bool kByRow, class Source>
void finish_floats_by(const Source& source, const Epilogue& e, const Floats& floats, int64_t row, int64_t rows,
                   int64_t channel, int64_t n) {
  for (int64_t r = 0; r < rows; ++r) {
    float* out = reinterpret_cast<float*>(e.out + (row + r) * e.out_stride);
    const uint8_t* p = e.residual ? residual_row(e, row + r) : nullptr;
    const F32 scale = all(kByRow ? e.row_scale[row + r] : 1.0f);
    int64_t c = 0;
    for (; c + kLanes <= n; c += kLanes) {
      const I32 acc = source.template get<true>(r, c, kLanes);
      finish_float<true, kByRow>(acc, e, floats, p, out, channel + c, kLanes, scale);
    }
    if (c == n) continue;
    const I32 acc = source.template get<false>(r, c, n - c);
    finish_float<false, kByRow>(acc, e, floats, p, out, channel + c, n - c, scale);
  }
}

template <class Source>
void finish_floats(const Source& source, const Epilogue& e, const Floats& floats, int64_t row, int64_t rows,
                   int64_t channel, int64_t n) {
  if (e.row_scale) return finish_floats_by<true>(source, e, floats, row, rows, channel, n);
  finish_floats_by<false>(source, e, floats, row, rows, channel, n);
}

// Values that have a table, in place.
inline void look_up_rows(const Epilogue& e, int64_t row, int64_t rows, int64_t channel, int64_t n) {
  uint8_t* out = e.out + row * e.out_stride + channel;
  if (e.out_stride == n) return look_up(out, 0, out, 0, 1, rows * n, e.table);
  look_up(out, e.out_stride, out, e.out_stride, rows, n, e.table);
}

// The accumulators that source.get(row, channel, n) gives vectors of, to the rows from `row` on and the channels from
// `channel` on. A source counts both from 0; it is asked for whole vectors, see Channels, of which n lanes are wanted.
template <class Source>
void finish(const Source& source, const Epilogue& e, int64_t row, int64_t rows, int64_t channel, int64_t n) {
  if (e.out_dtype == DType::f32) return finish_floats(source, e, Floats(e, channel, n), row, rows, channel, n);
  for (int64_t c = 0; c < n; c += kWidth) {
    const Channels channels(e, c, channel + c, n - c < kWidth ? n - c : kWidth);
    finish_of<Source>(e, channels)(source, e, channels, row, rows);
  }
  if (e.table) look_up_rows(e, row, rows, channel, n);
}

// Accumulators `acc` (rows x n, `ld` apart, readable to whole vectors, see Channels) of the rows from `row` on and the
// channels from `channel` on.
inline void epilogue(const int32_t* acc, int64_t ld, const Epilogue& e, int64_t row, int64_t rows, int64_t channel,
                     int64_t n) {
  finish(InMemory{acc, ld}, e, row, rows, channel, n);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
