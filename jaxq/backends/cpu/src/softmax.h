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

// Floats of a row to the output, 4 vectors at a time.
class Out {
 public:
  Out(const Rows& r, float multiplier) : dtype_(r.out_dtype) {
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) multiplier_[v] = all(multiplier);
  }
  // n <= 4 * kLanes values from column c on.
  void write(uint8_t* row, int64_t c, const F32* y, int64_t n) const {
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
  F32 multiplier_[4];
};

constexpr int64_t kSoftmaxScratch = 4096;  // columns whose exponentials are kept

inline void softmax(const Rows& r, float multiplier, int64_t first, int64_t last) {
  alignas(64) float kept[kSoftmaxScratch];
  const Out out(r, multiplier);
  const F32 smallest = all(-__builtin_inff());
  const bool keeps = r.cols <= kSoftmaxScratch;
  for (int64_t row = first; row < last; ++row) {
    const float* x = reinterpret_cast<const float*>(r.x + row * r.x_stride);
    const int64_t whole = r.cols / kLanes * kLanes, rest = r.cols - whole;
    F32 most = smallest;
    for (int64_t c = 0; c < whole; c += kLanes) most = max(most, load(x + c));
    if (rest) most = max(most, first_lanes(load(x + whole, rest), smallest, rest));
    most = all(largest(most));

    F32 sums = all(0.0f);  // of partial sums, so that few roundings follow one another
    for (int64_t begin = 0; begin < whole; begin += 32 * kLanes) {
      const int64_t end = begin + 32 * kLanes < whole ? begin + 32 * kLanes : whole;
      F32 part = all(0.0f);
      for (int64_t c = begin; c < end; c += kLanes) {
        const F32 y = exp_of_negative(sub(load(x + c), most));
        if (keeps) store(kept + c, y);
        part = add(part, y);
      }
      sums = add(sums, part);
    }
    if (rest) {
      const F32 y = exp_of_negative(sub(load(x + whole, rest), most));
      if (keeps) store(kept + whole, y, rest);
      sums = add(sums, first_lanes(y, all(0.0f), rest));
    }
    const F32 factor = all(1.0f / total(sums));

    for (int64_t c = 0; c < r.cols; c += 4 * kLanes) {
      const int64_t n = r.cols - c < 4 * kLanes ? r.cols - c : 4 * kLanes;
      F32 y[4];
      load_floats(keeps ? kept + c : x + c, n, y);
      JAXQ_UNROLL
      for (int v = 0; v < 4; ++v) y[v] = mul(keeps ? y[v] : exp_of_negative(sub(y[v], most)), factor);
      out.write(r.out + row * r.out_stride, c, y, n);
    }
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
