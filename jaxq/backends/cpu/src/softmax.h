// Softmax over rows of floats.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// exp(x) for x <= 0 to about one unit in the last place; NaN stays.
inline F32 exp_of_negative(F32 x) {
  x = max(all(-104.0f), x);  // below it the result is 0
  const F32 n = round_to_float(mul(x, all(1.44269504f)));
  F32 r = mul_add(n, all(-0.693359375f), x);  // ln 2 in two pieces
  r = mul_add(n, all(2.12194440e-4f), r);
  F32 p = all(1.9875691500e-4f);
  p = mul_add(p, r, all(1.3981999507e-3f));
  p = mul_add(p, r, all(8.3334519073e-3f));
  p = mul_add(p, r, all(4.1665795894e-2f));
  p = mul_add(p, r, all(1.6666665459e-1f));
  p = mul_add(p, r, all(5.0000001201e-1f));
  p = add(mul_add(p, mul(r, r), r), all(1.0f));
  return times_power_of_two(p, n);
}

// Floats of a row to the output, 4 vectors at a time. kTame: none is negative or above 1.
template <bool kTame = false>
class Out {
 public:
  Out(DType dtype, float multiplier) : dtype_(dtype), tame_(kTame && multiplier >= 0 && multiplier <= kLargest / 2) {
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) multiplier_[v] = all(multiplier);
  }
  // n <= 4 * kLanes values from column c on.
  void write(uint8_t* row, int64_t c, const F32* y, int64_t n) const {
    if (kTame && tame_ && dtype_ == DType::u8) return store_quantized<false, kTame>(row + c, y, multiplier_, n);
    if (dtype_ == DType::s8) return store_quantized<true>(row + c, y, multiplier_, n);
    if (dtype_ == DType::u8) return store_quantized<false>(row + c, y, multiplier_, n);
    float* to = reinterpret_cast<float*>(row) + c;
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) {
      const int64_t count = n - v * kLanes;
      if (count >= kLanes) {
        store(to + v * kLanes, y[v]);
      } else if (count > 0) {
        store(to + v * kLanes, y[v], count);
      }
    }
  }

 private:
  DType dtype_;
  bool tame_;
  F32 multiplier_[4];
};

// Rows at a time, since what follows one another in a row waits for one another; floats of them that are kept.
constexpr int kSoftmaxRows = kLanes == 16 ? 8 : 4;
constexpr int64_t kSoftmaxKept = 4096;

// kRows rows from `row` on. Their exponentials are kept between the two times that they are needed, or computed twice.
template <int kRows, bool kKeeps>
void softmax_rows(const Rows& r, const Out<true>& out, int64_t row) {
  alignas(64) float kept[kKeeps ? kSoftmaxKept : 1];
  const F32 smallest = all(-__builtin_inff());
  const int64_t whole = r.cols / kLanes * kLanes, rest = r.cols - whole, pitch = round_up(r.cols, kLanes);
  const float* x[kRows];
  F32 most[kRows], sums[kRows];  // sums of partial sums, so that few roundings follow one another
  JAXQ_UNROLL
  for (int i = 0; i < kRows; ++i) {
    x[i] = reinterpret_cast<const float*>(r.x + (row + i) * r.x_stride);
    most[i] = smallest;
    sums[i] = all(0.0f);
  }
  for (int64_t c = 0; c < whole; c += kLanes) {
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) most[i] = max(most[i], load(x[i] + c));
  }
  if (rest) {
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) most[i] = max(most[i], first_lanes(load(x[i] + whole, rest), smallest, rest));
  }
  JAXQ_UNROLL
  for (int i = 0; i < kRows; ++i) most[i] = all(largest(most[i]));

  for (int64_t begin = 0; begin < whole; begin += 32 * kLanes) {
    const int64_t end = begin + 32 * kLanes < whole ? begin + 32 * kLanes : whole;
    F32 part[kRows];
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) part[i] = all(0.0f);
    for (int64_t c = begin; c < end; c += kLanes) {
      JAXQ_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const F32 y = exp_of_negative(sub(load(x[i] + c), most[i]));
        if constexpr (kKeeps) store(kept + i * pitch + c, y);
        part[i] = add(part[i], y);
      }
    }
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) sums[i] = add(sums[i], part[i]);
  }
  if (rest) {
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const F32 y = exp_of_negative(sub(load(x[i] + whole, rest), most[i]));
      if constexpr (kKeeps) store(kept + i * pitch + whole, y, rest);
      sums[i] = add(sums[i], first_lanes(y, all(0.0f), rest));
    }
  }
  F32 factor[kRows];
  JAXQ_UNROLL
  for (int i = 0; i < kRows; ++i) factor[i] = all(1.0f / total(sums[i]));

  const auto write = [&](int64_t c, int64_t n) JAXQ_INLINE {
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      F32 y[4];
      load_floats(kKeeps ? kept + i * pitch + c : x[i] + c, n, y);
      JAXQ_UNROLL
      for (int v = 0; v < 4; ++v) y[v] = mul(kKeeps ? y[v] : exp_of_negative(sub(y[v], most[i])), factor[i]);
      out.write(r.out + (row + i) * r.out_stride, c, y, n);
    }
  };
  int64_t c = 0;
  for (; c + 4 * kLanes <= r.cols; c += 4 * kLanes) write(c, 4 * kLanes);
  if (c < r.cols) write(c, r.cols - c);
}

inline void softmax(const Rows& r, float multiplier, int64_t first, int64_t last) {
  const Out<true> out(r.out_dtype, multiplier);
  if (round_up(r.cols, kLanes) * kSoftmaxRows <= kSoftmaxKept) {
    for (; first + kSoftmaxRows <= last; first += kSoftmaxRows) softmax_rows<kSoftmaxRows, true>(r, out, first);
  }
  for (; first < last; ++first) {
    if (r.cols <= kSoftmaxKept) {
      softmax_rows<1, true>(r, out, first);
    } else {
      softmax_rows<1, false>(r, out, first);
    }
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
