// Sums of rows of floats: of an embedding's, looked up by token, and of others added to them; and over rows, weighted.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

constexpr float kNan = __builtin_nanf("");

// The term's row for an output row; *step 0: one value for all columns.
inline const float* row_of(const RowTerm& t, int64_t row, int64_t* step) {
  row = row / t.repeat % t.period;
  *step = t.step;
  if (t.index) {
    int64_t token = *reinterpret_cast<const int32_t*>(t.index + row * t.index_stride);
    if (token < 0 || token >= t.rows) {
      if (!t.clamps) {
        *step = 0;
        return &kNan;
      }
      token = token < 0 ? 0 : t.rows - 1;
    }
    row = token;
  }
  return reinterpret_cast<const float*>(t.x + row * t.x_stride);
}

inline F32 clipped(F32 y, float lo, float hi) { return min(all(hi), max(all(lo), y)); }  // NaN stays

inline void add_rows(const RowSum& s, int64_t first, int64_t last) {
  const bool clips = s.lo != -__builtin_inff() || s.hi != __builtin_inff();
  for (int64_t row = first; row < last; ++row) {
    const float* x[RowSum::kMost];
    int64_t step[RowSum::kMost];
    for (int64_t i = 0; i < s.terms; ++i) x[i] = row_of(s.term[i], row, step + i);
    float* out = reinterpret_cast<float*>(s.out + row * s.out_stride);
    for (int64_t c = 0; c < s.cols; c += kLanes) {
      const int64_t n = s.cols - c < kLanes ? s.cols - c : kLanes;
      const auto term = [&](int64_t i) JAXQ_INLINE { return step[i] ? load(x[i] + c, n) : all(*x[i]); };
      F32 y = term(0);
      for (int64_t i = 1; i < s.terms; ++i) y = add(y, term(i));
      store(out + c, clips ? clipped(y, s.lo, s.hi) : y, n);
    }
  }
}

// Rows whose products are added up before they come to the others: few roundings follow one another.
constexpr int64_t kPartRows = 32;

inline void sum_rows(const WeightedSum& s, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    for (int64_t c = 0; c < s.cols; c += 4 * kLanes) {
      const int64_t n = s.cols - c < 4 * kLanes ? s.cols - c : 4 * kLanes;
      F32 sums[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
      for (int64_t begin = row * s.rows; begin < (row + 1) * s.rows; begin += kPartRows) {
        const int64_t end = begin + kPartRows < (row + 1) * s.rows ? begin + kPartRows : (row + 1) * s.rows;
        F32 part[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
        for (int64_t r = begin; r < end; ++r) {
          F32 x[4], y[4];
          load_floats(reinterpret_cast<const float*>(s.x + r * s.x_stride) + c, n, x);
          if (s.weight.x) {
            int64_t step;
            const float* weight = row_of(s.weight, r, &step);
            if (step) {
              load_floats(weight + c, n, y);
            } else {
              y[0] = y[1] = y[2] = y[3] = all(*weight);
            }
            JAXQ_UNROLL
            for (int v = 0; v < 4; ++v) x[v] = mul(x[v], y[v]);
          }
          JAXQ_UNROLL
          for (int v = 0; v < 4; ++v) part[v] = add(part[v], x[v]);
        }
        JAXQ_UNROLL
        for (int v = 0; v < 4; ++v) sums[v] = add(sums[v], part[v]);
      }
      float* out = reinterpret_cast<float*>(s.out + row * s.out_stride) + c;
      for (int64_t v = 0; v < 4 && v * kLanes < n; ++v) {
        const int64_t count = n - v * kLanes < kLanes ? n - v * kLanes : kLanes;
        const F32 y = s.scale ? mul(sums[v], load(s.scale + c + v * kLanes, count)) : sums[v];
        store(out + v * kLanes, clipped(y, s.lo, s.hi), count);
      }
    }
  }
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
