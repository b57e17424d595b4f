// numerics.epilogue over accumulators in quad order: 4 vectors, 4 * kLanes channels; or kParts rows of a part of them.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// n <= kWidth / kParts channels from `channel` on, beside one another kParts times.
template <int kParts>
class Quads {
 public:
  Quads(const Epilogue& e, int64_t channel, int64_t n)
      : e_(e), channel_(channel), n_(n), signed_(is_signed(e)), simple_(!e.residual && e.out_dtype != DType::f32) {
    if (!simple_) return;
    fill(multiplier_, e.multiplier);
    fill(bias_, e.bias);
    lo_ = bounds(e.lo);
    hi_ = bounds(e.hi);
  }

  // Accumulators to kParts rows of the output; a row below 0 is not written. Values that have a table are looked up
  // by the caller, many at once, with look_up_rows().
  void finish(const I32* acc, const int64_t* rows) const {
    if (!simple_) return finish_in_order(acc, rows);
    alignas(64) uint8_t nowhere[kWidth];
    uint8_t* out[kParts];
    JAXQ_UNROLL
    for (int p = 0; p < kParts; ++p) out[p] = rows[p] < 0 ? nowhere : e_.out + rows[p] * e_.out_stride + channel_;
    I32 q[4];
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) {
      const F32 y = add(mul(to_float(acc[v]), load(multiplier_ + v * kLanes)), load(bias_ + v * kLanes));
      q[v] = round(min(y, all(kLargest)));
    }
    const I32 bytes = signed_ ? min_s8(max_s8(quads_to_s8(q[0], q[1], q[2], q[3]), lo_), hi_)
                              : min_u8(max_u8(quads_to_u8(q[0], q[1], q[2], q[3]), lo_), hi_);
    store_parts<kParts>(out, bytes, n_);
  }

  void look_up_rows(int64_t row, int64_t rows) const {
    if (!e_.table || !simple_) return;
    uint8_t* out = e_.out + row * e_.out_stride + channel_;
    look_up(out, e_.out_stride, out, e_.out_stride, rows, n_, e_.table);
  }

 private:
  static constexpr int64_t kPart = kWidth / kParts;

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

  void finish_in_order(const I32* acc, const int64_t* rows) const {
    alignas(64) int32_t in_quads[kWidth], ordered[kWidth];
    JAXQ_UNROLL
    for (int v = 0; v < 4; ++v) store(in_quads + v * kLanes, acc[v]);
    for (int64_t v = 0; v < 4; ++v) {
      for (int64_t i = 0; i < kLanes; ++i) ordered[i / 4 * 16 + v * 4 + i % 4] = in_quads[v * kLanes + i];
    }
    JAXQ_UNROLL
    for (int p = 0; p < kParts; ++p) {
      if (rows[p] >= 0) epilogue(ordered + p * kPart, kWidth, e_, rows[p], 1, channel_, n_);
    }
  }

  const Epilogue& e_;
  int64_t channel_, n_;
  bool signed_, simple_;
  alignas(64) float multiplier_[kWidth];
  alignas(64) float bias_[kWidth];
  I32 lo_, hi_;
};

}  // namespace JAXQ_ISA
}  // namespace jaxq
