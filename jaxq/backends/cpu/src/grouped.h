// Floats times int8 or int4 weights with a scale for each group of inputs. What few rows take is the time to read the
// weights: they become floats in registers. For many rows some inputs' weights become floats in memory, once.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

constexpr int kVectorsOfBlock = kBlock / kLanes;
// So many rows and more share weights that are floats in memory.
constexpr int kRowsForFloats = 4 * rows_of(kWide);

// Packed weights, `stride` bytes from one block to the next, from an input on that is the first of a group.
struct Int8Weights {
  const uint8_t* data;
  int64_t stride;
  Int8Weights from(int64_t input) const { return {data + input * kBlock, stride}; }
};
struct Int4Weights {
  const uint8_t* data;
  int64_t stride;
  Int4Weights from(int64_t input) const { return {data + input / 2 * kBlock, stride}; }
};
struct FloatWeights {
  const float* data;
  int64_t stride;  // in floats
  FloatWeights from(int64_t input) const { return {data + input * kBlock, stride}; }
};

// Vector v of line number `line`.
template <class Weights>
JAXQ_INLINE inline auto vector_at(const Weights& w, int64_t line, int v) {
  return w.data + v / kVectorsOfBlock * w.stride + line * kBlock + v % kVectorsOfBlock * kLanes;
}

JAXQ_INLINE inline F32 even_of(I32 both) { return to_float(shift_right_signed(shift_left(both, 28), 28)); }
JAXQ_INLINE inline F32 odd_of(I32 both) { return to_float(shift_right_signed(both, 4)); }

JAXQ_INLINE inline F32 floats_of(const uint8_t* p) { return to_float(widen_s8(p)); }
JAXQ_INLINE inline F32 floats_of(const float* p) { return load(p); }

// acc[r, v] += x[r][k] * line[v]
template <int kRows, int kVectors>
JAXQ_INLINE inline void add_line(const F32* line, const float* const* x, int64_t k, F32* acc) {
  JAXQ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const F32 factor = all(x[r][k]);
    JAXQ_UNROLL
    for (int v = 0; v < kVectors; ++v) acc[r * kVectors + v] = mul_add(factor, line[v], acc[r * kVectors + v]);
  }
}

// The same over so many inputs.
template <int kRows, int kVectors, class Weights>
JAXQ_INLINE inline void add_products(const Weights& w, const float* const* x, int64_t inputs, F32* acc) {
  for (int64_t k = 0; k < inputs; ++k) {
    F32 line[kVectors];
    JAXQ_UNROLL
    for (int v = 0; v < kVectors; ++v) line[v] = floats_of(vector_at(w, k, v));
    add_line<kRows, kVectors>(line, x, k, acc);
  }
}
template <int kRows, int kVectors>
JAXQ_INLINE inline void add_products(const Int4Weights& w, const float* const* x, int64_t inputs, F32* acc) {
  for (int64_t k = 0; k < inputs; k += 2) {
    I32 both[kVectors];
    F32 line[kVectors];
    JAXQ_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      both[v] = widen_s8(vector_at(w, k / 2, v));
      line[v] = even_of(both[v]);
    }
    add_line<kRows, kVectors>(line, x, k, acc);
    if (k + 1 == inputs) return;
    JAXQ_UNROLL
    for (int v = 0; v < kVectors; ++v) line[v] = odd_of(both[v]);
    add_line<kRows, kVectors>(line, x, k + 1, acc);
  }
}

// kBlocks blocks of channels from number `block` on: their scales, and their sums in the scratch, a row after another.
template <int kBlocks>
struct GroupedPanel {
  static constexpr int kChannels = kBlocks * kBlock, kVectors = kChannels / kLanes;
  const GroupedDot& d;
  int64_t block;

  float* sums(int64_t row) const { return d.scratch + row * kChannels; }
  float* floats() const { return sums(d.rows); }
  const float* scale(int64_t group, int v) const {
    return d.scale + ((block + v / kVectorsOfBlock) * d.groups() + group) * kBlock + v % kVectorsOfBlock * kLanes;
  }
};

// Inputs [first, last), whole groups but for the last one, of kRows rows from `row` on.
template <int kRows, int kBlocks, class Weights>
void add_groups(const GroupedPanel<kBlocks>& panel, const Weights& weights, int64_t row, int64_t first, int64_t last) {
  constexpr int kVectors = GroupedPanel<kBlocks>::kVectors;
  const GroupedDot& d = panel.d;
  for (int64_t k = first; k < last; k += d.group_size) {
    const float* x[kRows];
    for (int r = 0; r < kRows; ++r) x[r] = reinterpret_cast<const float*>(d.x + (row + r) * d.x_stride) + k;
    F32 acc[kRows * kVectors];
    JAXQ_UNROLL
    for (int i = 0; i < kRows * kVectors; ++i) acc[i] = all(0.0f);
    add_products<kRows, kVectors>(weights.from(k - first), x, last - k < d.group_size ? last - k : d.group_size, acc);
    JAXQ_UNROLL
    for (int r = 0; r < kRows; ++r) {
      JAXQ_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        float* sum = panel.sums(row + r) + v * kLanes;
        store(sum, mul_add(acc[r * kVectors + v], load(panel.scale(k / d.group_size, v)), load(sum)));
      }
    }
  }
}

template <int kRows, int kBlocks, class Weights>
void add_rows(const GroupedPanel<kBlocks>& panel, const Weights& weights, int64_t row, int64_t rows, int64_t first,
              int64_t last) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return add_groups<kRows, kBlocks>(panel, weights, row, first, last);
    add_rows<kRows - 1, kBlocks>(panel, weights, row, rows, first, last);
  }
}

// All rows, in pieces of kRows at most and about the same size.
template <int kRows, int kBlocks, class Weights>
void add_all_rows(const GroupedPanel<kBlocks>& panel, const Weights& weights, int64_t first, int64_t last) {
  int64_t row = 0;
  for (int64_t pieces = (panel.d.rows + kRows - 1) / kRows; pieces; --pieces) {
    const int64_t rows = (panel.d.rows - row + pieces - 1) / pieces;
    add_rows<kRows, kBlocks>(panel, weights, row, rows, first, last);
    row += rows;
  }
}

// The floats of inputs [first, last), at the end of the scratch.
template <int kBlocks>
FloatWeights in_memory(const GroupedPanel<kBlocks>& panel, const uint8_t* data, int64_t stride, int64_t first, int64_t last) {
  const int64_t inputs = last - first;
  float* to = panel.floats();
  for (int64_t b = 0; b < kBlocks; ++b, data += stride) {
    for (int64_t k = 0; k < inputs; ++k, to += kBlock) {
      JAXQ_UNROLL
      for (int v = 0; v < kVectorsOfBlock; ++v) {
        if (panel.d.is_int4) {
          const I32 both = widen_s8(data + (first + k) / 2 * kBlock + v * kLanes);
          store(to + v * kLanes, k % 2 ? odd_of(both) : even_of(both));  // first is even
        } else {
          store(to + v * kLanes, floats_of(data + (first + k) * kBlock + v * kLanes));
        }
      }
    }
  }
  return {panel.floats(), inputs * kBlock};
}

template <int kBlocks>
void finish_grouped(const GroupedPanel<kBlocks>& panel) {
  const GroupedDot& d = panel.d;
  const Epilogue& e = *d.epilogue;
  const int64_t begin = panel.block * kBlock, end = begin + panel.kChannels < d.channels ? begin + panel.kChannels : d.channels;
  for (int64_t row = 0; row < d.rows; ++row) {
    const uint8_t* p = e.residual ? residual_row(e, d.first_row + row) : nullptr;
    float* out = reinterpret_cast<float*>(e.out + (d.first_row + row) * e.out_stride);
    for (int64_t c = begin; c < end; c += kLanes) {
      const int64_t n = end - c < kLanes ? end - c : kLanes, at = d.first_channel + c;
      F32 y = load(panel.sums(row) + c - begin);
      if (e.bias) y = add(y, load(e.bias + at, n));
      if (p) y = add(y, residual_of(e, p, at, n));
      store(out + at, min(all(d.hi), max(all(d.lo), y)), n);  // NaN stays
    }
  }
}

// kBlocks blocks from number `block` on; returns the number of the next one.
template <int kRows, int kBlocks>
int64_t grouped_panel(const GroupedDot& d, int64_t block) {
  const GroupedPanel<kBlocks> panel = {d, block};
  const int64_t stride = lines_of(d.depth, d.is_int4) * kBlock;
  const uint8_t* data = d.weight + block * stride;
  for (int64_t i = 0; i < d.rows * panel.kChannels; i += kLanes) store(d.scratch + i, all(0.0f));
  if (d.rows >= kRowsForFloats) {
    const int64_t chunk = d.chunk();
    for (int64_t first = 0; first < d.depth; first += chunk) {
      const int64_t last = first + chunk < d.depth ? first + chunk : d.depth;
      add_all_rows<kRows, kBlocks>(panel, in_memory(panel, data, stride, first, last), first, last);
    }
  } else if (d.is_int4) {
    add_all_rows<kRows, kBlocks>(panel, Int4Weights{data, stride}, 0, d.depth);
  } else {
    add_all_rows<kRows, kBlocks>(panel, Int8Weights{data, stride}, 0, d.depth);
  }
  finish_grouped(panel);
  return block + kBlocks;
}

inline void grouped_dot(const GroupedDot& d) {
  const int64_t blocks = round_up(d.channels, kBlock) / kBlock;
  int64_t block = 0;
  if (d.rows <= kFewRows) {  // as many sums as the latency asks for
    while (blocks - block >= kManyBlocks) block = grouped_panel<kFewRows, kManyBlocks>(d, block);
  }
  while (blocks - block >= kWide) block = grouped_panel<rows_of(kWide), kWide>(d, block);
  while (block < blocks) block = grouped_panel<rows_of(kWide), 1>(d, block);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
