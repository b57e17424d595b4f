// Rows of floats times a weight in groups.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "grouped_weights.h"
#include "tests.h"

namespace jaxq::test {

void test_grouped_dot() {
  const int64_t rows = chance(0.7) ? between(1, 8) : between(1, 60), k = between(1, chance(0.5) ? 40 : 600);
  const int64_t n = some_channels(), group_size = one_of<int64_t>({2, 16, 48, 128, 512});
  const GroupedWeights w(n, k, group_size, chance(0.5));
  const int64_t x_stride = k + between(0, 1) * between(0, 9), out_stride = n + between(0, 1) * between(0, 9);
  const int64_t repeat = chance(0.3) ? between(1, 3) : 1, period = chance(0.5) ? between(1, 3) : (rows + repeat - 1) / repeat;
  const int64_t step = chance(0.3) ? 0 : 1, residual_stride = (step ? n : 1) + between(0, 1) * between(0, 9);
  Buffer<float> x((rows - 1) * x_stride + k), bias(n), residual(period * residual_stride), out((rows - 1) * out_stride + n);
  fill_random(x.memory, x.size, 1.0f);
  fill_random(bias.memory, n, 1.0f);
  fill_random(residual.memory, residual.size, 1.0f);
  fill_random(out.memory, out.size, 1.0f);
  const std::vector<float> before(out.memory, out.memory + out.size);
  Epilogue e = {};
  e.bias = chance(0.5) ? bias.memory : nullptr;
  e.residual = chance(0.5) ? residual.bytes() : nullptr;
  e.residual_dtype = e.out_dtype = DType::f32;
  e.residual_stride = residual_stride * 4, e.residual_repeat = repeat, e.residual_period = period, e.residual_step = step;
  e.out = out.bytes();
  e.out_stride = out_stride * 4;
  const float lo = chance(0.5) ? 0.0f : -INFINITY, hi = chance(0.5) ? 6.0f : INFINITY;
  const auto compute = [&](int64_t first_row, int64_t last_row, int64_t first_block, int64_t last_block) {
    GroupedDot d = {};
    d.x = x.bytes() + first_row * x_stride * 4, d.x_stride = x_stride * 4;
    d.weight = w.packed.memory + first_block * w.lines * kBlock;
    d.scale = w.scale.memory + first_block * w.groups * kBlock;
    d.is_int4 = w.is_int4, d.depth = k, d.group_size = group_size;
    d.rows = last_row - first_row, d.first_row = first_row;
    d.first_channel = first_block * kBlock, d.channels = std::min(last_block * kBlock, n) - d.first_channel;
    d.lo = lo, d.hi = hi, d.epilogue = &e;
    Buffer<float> scratch(d.scratch_size());
    d.scratch = scratch.memory;
    kernels->grouped_dot(d);
  };
  compute(0, rows, 0, w.blocks);
  bool right = true;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < out_stride && r * out_stride + c < out.size; ++c) {
      const float got = out[r * out_stride + c];
      if (c >= n) {
        right &= got == before[static_cast<size_t>(r * out_stride + c)];
        continue;
      }
      double y = 0, magnitude = 0;
      for (int64_t i = 0; i < k; ++i) {
        const double product = w.weight(c, i) * static_cast<double>(x[r * x_stride + i]);
        y += product;
        magnitude += std::fabs(product);
      }
      const auto plus = [&](double term) { y += term, magnitude += std::fabs(term); };
      if (e.bias) plus(static_cast<double>(bias[c]));
      if (e.residual) plus(static_cast<double>(residual[r / repeat % period * residual_stride + (step ? c : 0)]));
      y = std::min(std::max(y, static_cast<double>(lo)), static_cast<double>(hi));
      // Every sum and product is rounded: of a group, and then of the groups, bias and residual.
      const double roundings = static_cast<double>(std::min(group_size, k) + w.groups) + 4;
      right &= std::fabs(static_cast<double>(got) - y) <= std::ldexp(magnitude, -24) * roundings;
    }
  }
  // The same bits of parts.
  const std::vector<float> whole(out.memory, out.memory + out.size);
  in_parts(rows, [&](int64_t first, int64_t last) {
    in_parts(w.blocks, [&](int64_t from, int64_t to) { compute(first, last, from, to); });
  });
  right &= std::memcmp(whole.data(), out.memory, whole.size() * sizeof(float)) == 0;
  check(right, "grouped_dot rows " + std::to_string(rows) + " channels " + std::to_string(n) + " depth " + std::to_string(k) +
                   " group " + std::to_string(group_size) + (w.is_int4 ? " int4" : " int8"));
}

}  // namespace jaxq::test
