// histogram.h against its plain definition, in buffers of exactly their size. test_kernels.py says how it is built.
// Arguments: none. It prints what passed and failed, as kernels/main.cc does; ROUNDS in the environment.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "histogram.h"

namespace {

using jaxq::Histogram;
constexpr float kTiny = std::numeric_limits<float>::min();

struct Result {
  std::vector<uint32_t> counts = std::vector<uint32_t>(Histogram::kSlots);
  float amax = 0;
  bool operator==(const Result& other) const { return counts == other.counts && amax == other.amax; }
};

// The class comment of histogram.py, in double precision.
Result defined(const std::vector<float>& x) {
  Result result;
  for (const float v : x) result.counts[Histogram::kNonfinite] += !std::isfinite(v);
  if (result.counts[Histogram::kNonfinite]) return result;
  for (const float v : x) result.amax = std::fabs(v) < kTiny ? result.amax : std::fmax(result.amax, std::fabs(v));
  int exponent = 0;
  std::frexp(result.amax, &exponent);
  for (const float v : x) {
    const double size = std::fabs(static_cast<double>(v));
    ++result.counts[size < kTiny ? Histogram::kZero : static_cast<int>(std::ldexp(size, 11 - exponent))];
  }
  return result;
}

// Counted in pieces, some of them in a histogram of their own.
Result counted(const std::vector<float>& x, std::mt19937& random) {
  auto total = std::make_unique<Histogram>();
  for (size_t at = 0; at < x.size();) {
    const size_t n = std::min<size_t>(x.size() - at, random() % 3 ? random() % 200 : x.size());
    const std::unique_ptr<float[]> piece(new float[n]);
    std::copy_n(&x[at], n, piece.get());
    if (random() % 2) {
      total->add(piece.get(), static_cast<int64_t>(n));
    } else {
      auto other = std::make_unique<Histogram>();
      other->add(piece.get(), static_cast<int64_t>(n));
      total->merge(*other);
    }
    at += n;
  }
  Result result;
  total->write(result.counts.data(), &result.amax);
  return result;
}

}  // namespace

int main() {
  const char* rounds = std::getenv("ROUNDS");
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  int passed = 0, failed = 0;
  for (int round = 0; round < 10 * (rounds ? std::atoi(rounds) : 100); ++round) {
    const int n = static_cast<int>(random() % 4 ? random() % 300 : random() % 40000), spread = 1 << random() % 9;
    const int centre = static_cast<int>(random() % 250) - 125;
    std::vector<float> x(static_cast<size_t>(n));
    for (float& v : x) {
      v = std::ldexp(normal(random), centre + static_cast<int>(random() % spread));
      if (!std::isfinite(v)) v = std::numeric_limits<float>::max();
      if (random() % 8 == 0) v = random() % 2 ? 0.0f : -0.0f;
      if (random() % 64 == 0) v = random() % 2 ? kTiny : std::numeric_limits<float>::denorm_min();
      if (random() % 64 == 0) v = std::ldexp(1.0f, centre);
    }
    if (n && random() % 8 == 0) x[random() % x.size()] = random() % 2 ? NAN : -INFINITY;
    ++(counted(x, random) == defined(x) ? passed : failed);
  }
  std::printf("histogram: %d passed, %d failed\n", passed, failed);
  return failed != 0;
}
