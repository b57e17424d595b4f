// The histogram of jaxq/calibration/histogram.py, of float32 values: the same counts and amax, bit for bit.
//
// The range doubles as amax grows, so one reading of the values is enough: each piece is counted in the range of what
// came before it and of itself. Plain C++: the increments bound it, and wider vectors make it no faster.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

namespace jaxq {

class Histogram {
 public:
  static constexpr int kBins = 2048, kZero = kBins, kNonfinite = kBins + 1, kSlots = kBins + 2;
  static constexpr int64_t kPiece = 1 << 14;  // values that stay in a core's second-level cache while they are read twice

  // Counts n more values; fewer than 2^32 in all.
  void add(const float* x, int64_t n) {
    for (; n > kPiece; x += kPiece, n -= kPiece) add_piece(x, kPiece);
    add_piece(x, n);
  }

  void merge(const Histogram& other) {
    widen(other.amax_);
    const int doublings = std::min(exponent_of(amax_) - exponent_of(other.amax_), kLog2Bins);
    for (int i = 0; i < kBins; ++i) counts_[i >> doublings] += other.counts_[i];
    counts_[kZero] += other.counts_[kZero];
    counts_[kNonfinite] += other.counts_[kNonfinite];
  }

  // NaN or Inf make all but their own count void.
  void write(uint32_t* counts, float* amax) const {
    if (counts_[kNonfinite]) {
      std::fill_n(counts, kNonfinite, 0u);
      counts[kNonfinite] = counts_[kNonfinite];
      *amax = 0;
    } else {
      std::copy_n(counts_, kSlots, counts);
      *amax = float_of(amax_);
    }
  }

 private:
  // Magnitudes are compared as the integers of their bits.
  static constexpr int32_t kSmallestNormal = 0x00800000, kInfinity = 0x7F800000;
  static constexpr int kLog2Bins = 11, kBlock = 64;

  static int32_t magnitude(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits & 0x7FFFFFFF;
  }

  static float float_of(int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  static float power_of_two(int exponent) { return float_of((exponent + 127) << 23); }

  // The least e with amax < 2^e; -126 for zero.
  static int exponent_of(int32_t amax) { return (amax >> 23) - 126; }

  void add_piece(const float* x, int64_t n) {
    int32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, magnitude(x[i]));
    if (largest >= kInfinity) {
      for (int64_t i = 0; i < n; ++i) counts_[kNonfinite] += magnitude(x[i]) >= kInfinity;
      return;
    }
    widen(largest);
    // 2^(11 - e), which may be too large for one float, in two factors.
    const int shift = kLog2Bins - exponent_of(amax_);
    const float scale = power_of_two(shift / 2), rest = power_of_two(shift - shift / 2);
    int32_t slots[kBlock];
    for (; n >= kBlock; x += kBlock, n -= kBlock) {
      for (int i = 0; i < kBlock; ++i) slots[i] = slot(x[i], scale, rest);
      for (int i = 0; i < kBlock; ++i) ++counts_[slots[i]];
    }
    for (int64_t i = 0; i < n; ++i) ++counts_[slot(x[i], scale, rest)];
  }

  // The bin is the whole part of |x| 2^(11 - e), which is below 2048 and, where it is not below 1, exact.
  static int32_t slot(float x, float scale, float rest) {
    const int32_t bits = magnitude(x), bin = static_cast<int32_t>(float_of(bits) * scale * rest);
    const int32_t is_zero = -static_cast<int32_t>(bits < kSmallestNormal);  // a mask: branches are mispredicted
    return (kZero & is_zero) | (bin & ~is_zero);
  }

  // Makes room for magnitudes up to `largest`: each doubling of the range merges pairs of bins.
  void widen(int32_t largest) {
    if (largest < kSmallestNormal || largest <= amax_) return;
    const int doublings = std::min(exponent_of(largest) - exponent_of(amax_), kLog2Bins);
    amax_ = largest;
    if (doublings == 0) return;
    for (int i = 1; i < kBins; ++i) {
      const uint32_t count = counts_[i];
      counts_[i] = 0;
      counts_[i >> doublings] += count;
    }
  }

  uint32_t counts_[kSlots] = {};
  int32_t amax_ = 0;
};

}  // namespace jaxq
