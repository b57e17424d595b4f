// The epilogue of sums that a matrix product has just made, in registers or in memory.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// numerics.epilogue for the same n <= kGroups * kWidth channels of many rows; the tables are left for the end.
template <int kGroups>
class Finisher {
 public:
  Finisher(const Epilogue& e, int64_t channel, int64_t n)
      : e_(e), channel_(channel), n_(n), floats_(e, channel, is_float() ? n : 0) {
    if (is_float()) {
      const bool by_value = e.residual && (!e.residual_step || e.residual_dtype != DType::f32);
      floats_in_registers_ = floats_.bounded && !floats_.clipped && !e.row_scale && !by_value;
      if (e.residual && floats_in_registers_ && e.residual_period == 1) share_residual();
      return;
    }
    residual_ = residual_kind(e);
    for (int64_t c = 0; c < n; c += kWidth, ++groups_) {
      channels_[groups_] = Channels(e, c, channel + c, n - c < kWidth ? n - c : kWidth);
      finish_[groups_] = finish_of<InMemory>(e, channels_[groups_]);
      if (!channels_[groups_].bounded || e.row_scale) residual_ = Residual::other;
    }
  }

  // Sums in memory, `ld` apart.
  void finish(const int32_t* sums, int64_t ld, int64_t row, int64_t rows) const {
    const InMemory source = {sums, ld};
    if (is_float()) return finish_floats(source, e_, floats_, row, rows, channel_, n_);
    for (int i = 0; i < groups_; ++i) finish_[i](source, e_, channels_[i], row, rows);
  }

  // Sums of kRows rows, kVectors vectors each; in registers if `often`, else by less code.
  template <int kRows, int kVectors, bool often>
  JAXQ_INLINE void finish(const Vectors<kRows * kVectors>& sums, int64_t row) const {
    if constexpr (often) {
      if (floats_in_registers_ && n_ == kVectors * kLanes) {
        if (!e_.residual) return finish_floats_in_registers<Addend::none, kRows, kVectors>(sums, row);
        if (e_.residual_period == 1) return finish_floats_in_registers<Addend::shared, kRows, kVectors>(sums, row);
        return finish_floats_in_registers<Addend::own, kRows, kVectors>(sums, row);
      }
      if (residual_ == Residual::none) return finish_in_registers<Residual::none, true, kRows, kVectors>(sums, row);
      if (residual_ == Residual::bytes) {
        if (n_ == kVectors * kLanes) return finish_in_registers<Residual::bytes, true, kRows, kVectors>(sums, row);
        return finish_in_registers<Residual::bytes, false, kRows, kVectors>(sums, row);
      }
    }
    alignas(64) int32_t in_memory[kRows * kVectors * kLanes + kWidth];  // vectors are read that begin in the last row
    each<kRows * kVectors>([&](auto i) JAXQ_INLINE { store(in_memory + i.value * kLanes, at<i.value>(sums)); });
    finish(in_memory, kVectors * kLanes, row, kRows);
  }

  void look_up(int64_t row, int64_t rows) const {
    if (e_.table) look_up_rows(e_, row, rows, channel_, n_);
  }

 private:
  bool is_float() const { return e_.out_dtype == DType::f32; }

  // What a row's residual adds to it: nothing, the same as to all rows, or floats of its own.
  enum class Addend { none, shared, own };

  F32 addend(const float* residual) const { return finite(mul(load(residual), all(e_.residual_multiplier))); }

  void share_residual() {
    const float* residual = reinterpret_cast<const float*>(e_.residual) + channel_;
    for (int64_t c = 0; c + kLanes <= n_; c += kLanes) store(shared_ + c, addend(residual + c));
  }

  template <Addend kind, int kRows, int kVectors>
  JAXQ_INLINE void finish_floats_in_registers(const Vectors<kRows * kVectors>& sums, int64_t row) const {
    float* out[kRows];
    const float* p[kRows];
    each<kRows>([&](auto r) JAXQ_INLINE {
      constexpr int i = r.value;
      out[i] = reinterpret_cast<float*>(e_.out + (row + i) * e_.out_stride) + channel_;
      if constexpr (kind == Addend::own) p[i] = reinterpret_cast<const float*>(residual_row(e_, row + i)) + channel_;
    });
    each<kVectors>([&](auto v) JAXQ_INLINE {
      constexpr int c = v.value * kLanes;
      const F32 multiplier = load(e_.multiplier + channel_ + c), bias = load(e_.bias + channel_ + c);
      each<kRows>([&](auto r) JAXQ_INLINE {
        F32 y = add(mul(to_float(at<r.value * kVectors + v.value>(sums)), multiplier), bias);
        if constexpr (kind == Addend::shared) y = add(y, load(shared_ + c));
        if constexpr (kind == Addend::own) y = add(y, addend(p[r.value] + c));
        store(out[r.value] + c, y);
      });
    });
  }

  // First all values of a vector of channels, whose multipliers and biases are loaded once, then row by row to bytes.
  // kFull: the channels fill the vectors.
  template <Residual residual, bool kFull, int kRows, int kVectors>
  JAXQ_INLINE void finish_in_registers(const Vectors<kRows * kVectors>& sums, int64_t row) const {
    const uint8_t* p[kRows];
    if constexpr (residual != Residual::none) {
      each<kRows>([&](auto r) JAXQ_INLINE { p[r.value] = residual_row(e_, row + r.value); });
    }
    Vectors<kRows * kVectors> whole;
    each<kVectors>([&](auto v) JAXQ_INLINE {
      const Channels& channels = channels_[v.value / 4];
      constexpr int c = v.value % 4 * kLanes;
      const F32 multiplier = load(channels.multiplier + c), bias = load(channels.bias + c);
      const int64_t rest = channels.n - c, count = rest > kLanes ? kLanes : rest < 0 ? 0 : rest;
      each<kRows>([&](auto r) JAXQ_INLINE {
        constexpr int i = r.value * kVectors + v.value;
        F32 y = add(mul(to_float(at<i>(sums)), multiplier), bias);
        if constexpr (residual != Residual::none) {
          const F32 x = to_float(widened<kFull>(p[r.value] + channels.at + c, e_.residual_dtype, count));
          y = add(y, mul(x, all(e_.residual_multiplier)));
        }
        at<i>(whole) = round(y);
      });
    });
    constexpr int kOfRow = kVectors > 2 ? 4 : kVectors, kAtOnce = 4 / kOfRow;  // vectors, rows
    each<(kVectors + 3) / 4>([&](auto g) JAXQ_INLINE {
      const Channels& channels = channels_[g.value];
      uint8_t* const first = e_.out + row * e_.out_stride + channels.at;
      const int64_t stride = e_.out_stride;
      each<(kRows + kAtOnce - 1) / kAtOnce>([&](auto step) JAXQ_INLINE {
        alignas(64) uint8_t nowhere[kWidth];
        uint8_t* out[kAtOnce];
        I32 q[4];
        each<4>([&](auto i) JAXQ_INLINE {
          constexpr int r = step.value * kAtOnce + i.value / kOfRow, v = i.value % kOfRow, all_v = g.value * 4 + v;
          if constexpr (v == 0) out[i.value / kOfRow] = r < kRows ? first + r * stride : nowhere;
          if constexpr (r < kRows && all_v < kVectors) {
            q[i.value] = at<r * kVectors + all_v>(whole);
          } else {
            q[i.value] = zero();
          }
        });
        store_parts<kAtOnce>(out, channels.clipped(channels.to_bytes(q)), channels.n);
      });
    });
  }

  const Epilogue& e_;
  int64_t channel_, n_;
  Floats floats_;
  bool floats_in_registers_ = false;
  alignas(64) float shared_[kGroups * kWidth];
  Residual residual_ = Residual::other;  // of bytes; other: not in registers
  int groups_ = 0;
  Channels channels_[kGroups];
  Finish<InMemory> finish_[kGroups];
};

}  // namespace JAXQ_ISA
}  // namespace jaxq
