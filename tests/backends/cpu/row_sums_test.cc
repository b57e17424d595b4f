// Sums of rows of every instruction set that this machine has against their plain definition, bit for bit, in buffers of
// exactly their size. test_kernels.py says how it is built; it prints what passed and failed, as kernels/main.cc does.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "machine.h"
#include "random.h"

namespace jaxq::test {

namespace {

// Floats in memory of exactly their size, some of them NaN.
struct Floats {
  explicit Floats(int64_t n) : memory(new float[static_cast<size_t>(n)]), size(n) {
    std::normal_distribution<float> normal(0, 30);
    for (int64_t i = 0; i < n; ++i) memory[static_cast<size_t>(i)] = chance(0.002) ? NAN : normal(generator);
  }
  uint8_t* bytes() const { return reinterpret_cast<uint8_t*>(memory.get()); }
  float at(int64_t i) const { return memory[static_cast<size_t>(i)]; }
  std::unique_ptr<float[]> memory;
  int64_t size;
};

// A term of `rows` rows, `cols` columns each, what it reads, and its value there.
struct Term {
  Term(int64_t rows, int64_t cols)
      : repeat(chance(0.3) ? between(1, 3) : 1),
        period(chance(0.3) ? between(1, (rows + repeat - 1) / repeat) : (rows + repeat - 1) / repeat),
        step(!chance(0.2)),
        stride((step ? cols : 1) + (chance(0.3) ? 5 : 0)),
        table(chance(0.5) ? between(1, 9) : 0),
        clamps(chance(0.5)),
        index(new int32_t[static_cast<size_t>(period)]),
        x(((table ? table : period) - 1) * stride + (step ? cols : 1)) {
    for (int64_t i = 0; i < period; ++i) {
      index[static_cast<size_t>(i)] = static_cast<int32_t>(chance(0.1) ? between(-3000000000, 3000000000) : between(-1, table));
    }
  }
  RowTerm term() const {
    const auto* numbers = table ? reinterpret_cast<const uint8_t*>(index.get()) : nullptr;
    return {x.bytes(), stride * 4, repeat, period, step, numbers, 4, table ? table : 1, clamps};
  }
  float at(int64_t row, int64_t col) const {
    row = row / repeat % period;
    if (table) {
      const int64_t token = index[static_cast<size_t>(row)];
      if (!clamps && (token < 0 || token >= table)) return NAN;
      row = std::clamp<int64_t>(token, 0, table - 1);
    }
    return x.at(row * stride + (step ? col : 0));
  }
  int64_t repeat, period, step, stride, table;
  bool clamps;
  std::unique_ptr<int32_t[]> index;
  Floats x;
};

bool same(float a, float b) { return std::isnan(a) ? std::isnan(b) : std::memcmp(&a, &b, 4) == 0; }
float clipped(float y, float lo, float hi) { return std::isnan(y) ? y : std::min(std::max(y, lo), hi); }

// Whether the sum's kernel, run on the rows in two parts, writes `expected`, clipped.
template <typename Sum, typename Kernel, typename Expected>
bool gives(Sum s, int64_t rows, const Kernel& kernel, const Expected& expected) {
  const Floats out(rows * s.cols);
  const int64_t first = between(0, rows);
  s.out = out.bytes();
  s.out_stride = s.cols * 4;
  kernel(s, 0, first);
  kernel(s, first, rows);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < s.cols; ++c) {
      if (!same(out.at(r * s.cols + c), clipped(expected(r, c), s.lo, s.hi))) return false;
    }
  }
  return true;
}

bool adds(const Kernels& kernels) {
  const int64_t rows = between(1, 9), cols = between(1, 90), terms = between(1, RowSum::kMost);
  RowSum s = {};
  std::vector<Term> all;
  for (int64_t i = 0; i < terms; ++i) s.term[i] = all.emplace_back(rows, cols).term();
  s.terms = terms;
  s.lo = chance(0.5) ? -INFINITY : -10.0f;
  s.hi = chance(0.5) ? INFINITY : 10.0f;
  s.cols = cols;
  return gives(s, rows, kernels.add_rows, [&](int64_t r, int64_t c) {
    float y = all[0].at(r, c);
    for (size_t i = 1; i < all.size(); ++i) y += all[i].at(r, c);
    return y;
  });
}

bool sums(const Kernels& kernels) {
  const int64_t rows = between(1, 3), cols = between(1, 90), terms = between(1, 80);
  const Floats x(rows * terms * cols), scale(cols);
  const Term weight(rows * terms, cols);
  const bool has_weight = chance(0.7);
  WeightedSum s = {};
  s.x = x.bytes();
  s.x_stride = cols * 4;
  s.rows = terms;
  if (has_weight) s.weight = weight.term();
  s.scale = chance(0.5) ? scale.memory.get() : nullptr;
  s.lo = chance(0.5) ? -INFINITY : -1000.0f;
  s.hi = INFINITY;
  s.cols = cols;
  return gives(s, rows, kernels.sum_rows, [&](int64_t r, int64_t c) {
    float y = 0;
    for (int64_t begin = 0; begin < terms; begin += 32) {
      float part = 0;
      for (int64_t t = r * terms + begin; t < r * terms + std::min(begin + 32, terms); ++t) {
        const float value = x.at(t * cols + c);
        const volatile float product = has_weight ? value * weight.at(t, c) : value;
        part += product;
      }
      y += part;
    }
    return s.scale ? y * scale.at(c) : y;
  });
}

int run() {
  const char* rounds = std::getenv("ROUNDS");
  bool right = true;
  for (const Kernels* kernels : machine_kernels()) {
    generator.seed(1);
    int passed = 0, failed = 0;
    for (int i = 0; i < 10 * (rounds ? std::atoi(rounds) : 100); ++i) {
      ++(adds(*kernels) ? passed : failed);
      ++(sums(*kernels) ? passed : failed);
    }
    std::printf("%s: %d passed, %d failed\n", kernels->name, passed, failed);
    right &= !failed;
  }
  return right ? 0 : 1;
}

}  // namespace
}  // namespace jaxq::test

int main() { return jaxq::test::run(); }
