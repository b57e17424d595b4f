// numerics.epilogue over accumulators in memory.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// Above every bound that an integer output has, and below what rounding to int32 holds.
constexpr float kLargest = 1e9f;

template <DType dtype>
inline F32 load_as_float(const uint8_t* p, int64_t n) {
  if constexpr (dtype == DType::s8) return to_float(widen_s8(p, n));
  if constexpr (dtype == DType::u8) return to_float(widen_u8(p, n));
  return load(reinterpret_cast<const float*>(p), n);
}

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

enum class Residual { none, s8, u8, f32, one };

// Up to 16 channels from `channel` on, of `rows` rows; the accumulators of two rows are `ld` apart.
template <Residual residual, DType out_dtype>
void finish(const int32_t* acc, int64_t ld, const Epilogue& e, int64_t row, int64_t rows, int64_t channel, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes) {
    const int64_t at = channel + c, count = n - c < kLanes ? n - c : kLanes;
    const F32 multiplier = load(e.multiplier + at, count), bias = load(e.bias + at, count);
    const F32 lo = load(e.lo + at, count);
    F32 hi = load(e.hi + at, count);
    if constexpr (out_dtype != DType::f32) hi = min(hi, all(kLargest));
    const F32 factor = all(e.residual_multiplier);
    for (int64_t r = 0; r < rows; ++r) {
      F32 y = add(mul(to_float(load(acc + r * ld + c)), multiplier), bias);
      if constexpr (residual == Residual::one) {
        y = add(y, mul(all(one_as_float(residual_row(e, row + r), e.residual_dtype)), factor));
      } else if constexpr (residual != Residual::none) {
        constexpr DType dtype = residual == Residual::s8 ? DType::s8 : residual == Residual::u8 ? DType::u8 : DType::f32;
        y = add(y, mul(load_as_float<dtype>(residual_row(e, row + r) + at * size_of(dtype), count), factor));
      }
      y = min(max(y, lo), hi);
      uint8_t* out = e.out + (row + r) * e.out_stride + at * size_of(out_dtype);
      if constexpr (out_dtype == DType::f32) {
        store(reinterpret_cast<float*>(out), y, count);
      } else {
        store_bytes(out, round(y), count);
      }
    }
  }
}

template <DType out_dtype>
inline void finish_as(const int32_t* acc, int64_t ld, const Epilogue& e, int64_t row, int64_t rows, int64_t channel,
                      int64_t n) {
  if (!e.residual) return finish<Residual::none, out_dtype>(acc, ld, e, row, rows, channel, n);
  if (!e.residual_step) return finish<Residual::one, out_dtype>(acc, ld, e, row, rows, channel, n);
  if (e.residual_dtype == DType::s8) return finish<Residual::s8, out_dtype>(acc, ld, e, row, rows, channel, n);
  if (e.residual_dtype == DType::u8) return finish<Residual::u8, out_dtype>(acc, ld, e, row, rows, channel, n);
  return finish<Residual::f32, out_dtype>(acc, ld, e, row, rows, channel, n);
}

// Accumulators `acc` (rows x n, `ld` apart, readable to a multiple of 16 channels) of the rows from `row` on and the
// channels from `channel` on.
inline void epilogue(const int32_t* acc, int64_t ld, const Epilogue& e, int64_t row, int64_t rows, int64_t channel,
                     int64_t n) {
  if (e.out_dtype == DType::f32) return finish_as<DType::f32>(acc, ld, e, row, rows, channel, n);
  finish_as<DType::s8>(acc, ld, e, row, rows, channel, n);
  if (e.table) {
    for (int64_t r = 0; r < rows; ++r) {
      uint8_t* out = e.out + (row + r) * e.out_stride + channel;
      look_up(out, 0, out, 0, 1, n, e.table);
    }
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
