// numerics.epilogue over accumulators in quad order: 4 vectors, 4 * kLanes channels; or kParts rows of a part of them.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// Rows of the output, one for each part, and those that follow them.
template <int kParts>
struct Target {
  int64_t row[kParts];  // below 0: a part that is not written
};

// n <= kWidth / kParts channels from `channel` on, exactly so many if kFull, beside one another kParts times.
template <int kParts, bool kFull = false>
class Quads {
 public:
  static constexpr int64_t kPart = kWidth / kParts;

  Quads(const Epilogue& e, int64_t channel, int64_t n)
      : e_(e), channel_(channel), n_(n), signed_(is_signed(e)), simple_(!e.residual && e.out_dtype != DType::f32) {
    if (!simple_) return;
    fill(multiplier_, e.multiplier);
    fill(bias_, e.bias);
    lo_ = bounds(e.lo);
    hi_ = bounds(e.hi);
    F32 most = all(0.0f);
    for (int v = 0; v < 4; ++v) {
      const F32 m = load(multiplier_ + v * kLanes), b = load(bias_ + v * kLanes);
      most = max(most, add(mul(max(m, sub(all(0.0f), m)), all(2147483648.0f)), max(b, sub(all(0.0f), b))));
    }
    bounded_ = largest(most) <= kLargest;
  }

  // kLines * kCount times accumulators to `kCount` rows each of `kLines` targets, from the row `offset` behind it on.
  // Values that have a table are looked up by the caller, many at once, with look_up_rows().
  template <int kCount, int kLines>
  JAXQ_INLINE void finish(Vectors<kLines * kCount * 4>& acc, const Target<kParts>* targets, int64_t offset) const {
    if (!simple_) return finish_in_order<kCount, kLines>(acc, targets, offset);
    if (bounded_) {
      round_all<kLines * kCount, true>(acc);
    } else {
      round_all<kLines * kCount, false>(acc);
    }
    if (signed_) {
      store_all<kCount, kLines, true>(acc, targets, offset);
    } else {
      store_all<kCount, kLines, false>(acc, targets, offset);
    }
  }

  void look_up_rows(int64_t row, int64_t rows) const {
    if (!e_.table || !simple_) return;
    uint8_t* out = e_.out + row * e_.out_stride + channel_;
    look_up(out, e_.out_stride, out, e_.out_stride, rows, n_, e_.table);
  }

 private:
  // In order, repeated, with 0 beyond n; `to` in quad order.
  void fill(float* to, const float* from) const {
    for (int64_t v = 0; v < 4; ++v) {
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t c = (i / 4 * 16 + v * 4 + i % 4) % kPart;
        to[v * kLanes + i] = c < n_ ? from[channel_ + c] : 0.0f;
      }
    }
  }

  I32 bounds(const float* from) const {
    alignas(64) float in_quads[kWidth];
    fill(in_quads, from);
    I32 q[4];
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) q[v] = round(load(in_quads + v * kLanes));
    return signed_ ? quads_to_s8(q[0], q[1], q[2], q[3]) : quads_to_u8(q[0], q[1], q[2], q[3]);
  }

  template <int n, bool kBounded>
  JAXQ_INLINE void round_all(Vectors<n * 4>& acc) const {
    each<4>([&](auto v) JAXQ_INLINE {
      const F32 multiplier = load(multiplier_ + v.value * kLanes), bias = load(bias_ + v.value * kLanes);
      each<n>([&](auto i) JAXQ_INLINE {
        I32& x = at<i.value * 4 + v.value>(acc);
        const F32 y = add(mul(to_float(x), multiplier), bias);
        x = round(kBounded ? y : min(y, all(kLargest)));
      });
    });
  }

  template <int kCount, int kLines, bool kSigned>
  JAXQ_INLINE void store_all(Vectors<kLines * kCount * 4>& acc, const Target<kParts>* targets, int64_t offset) const {
    alignas(64) uint8_t nowhere[kParts > 1 ? kWidth : 1];
    const int64_t stride = e_.out_stride;
    each<kLines>([&](auto l) JAXQ_INLINE {
      uint8_t* out[kParts];
      int64_t step[kParts];
      JAXQ_UNROLL
      for (int p = 0; p < kParts; ++p) {
        const int64_t row = targets[l.value].row[p];
        const bool written = kParts == 1 || row >= 0;
        out[p] = written ? e_.out + (row + offset) * stride + channel_ : nowhere;
        step[p] = written ? stride : 0;
      }
      each<kCount>([&](auto t) JAXQ_INLINE {
        constexpr int i = (l.value * kCount + t.value) * 4;
        const I32 a = at<i>(acc), b = at<i + 1>(acc), c = at<i + 2>(acc), d = at<i + 3>(acc);
        const I32 bytes = kSigned ? min_s8(max_s8(quads_to_s8(a, b, c, d), lo_), hi_)
                                  : min_u8(max_u8(quads_to_u8(a, b, c, d), lo_), hi_);
        store_parts<kParts>(out, bytes, kFull ? kPart : n_);
        JAXQ_UNROLL
        for (int p = 0; p < kParts; ++p) out[p] += step[p];
      });
    });
  }

  template <int kCount, int kLines>
  void finish_in_order(const Vectors<kLines * kCount * 4>& acc, const Target<kParts>* targets, int64_t offset) const {
    alignas(64) int32_t in_quads[kLines * kCount * kWidth], ordered[kWidth];
    each<kLines * kCount * 4>([&](auto i) JAXQ_INLINE { store(in_quads + i.value * kLanes, at<i.value>(acc)); });
    for (int64_t t = 0; t < kLines * kCount; ++t) {
      for (int64_t v = 0; v < 4; ++v) {
        for (int64_t i = 0; i < kLanes; ++i) {
          ordered[i / 4 * 16 + v * 4 + i % 4] = in_quads[t * kWidth + v * kLanes + i];
        }
      }
      for (int p = 0; p < kParts; ++p) {
        const int64_t row = targets[t / kCount].row[p];
        if (row >= 0) epilogue(ordered + p * kPart, kWidth, e_, row + offset + t % kCount, 1, channel_, n_);
      }
    }
  }

  const Epilogue& e_;
  int64_t channel_, n_;
  bool signed_, simple_, bounded_ = false;
  alignas(64) float multiplier_[kWidth];
  alignas(64) float bias_[kWidth];
  I32 lo_, hi_;
};

}  // namespace JAXQ_ISA
}  // namespace jaxq
