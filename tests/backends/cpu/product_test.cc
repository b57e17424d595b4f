// Products of two values against their plain definition, and with a softmax behind them against the product and the
// softmax one after the other, bit for bit: random shapes, strides and masks, in buffers of exactly their size.
//
// test_kernels.py says how it is built. It prints "NAME: N passed, N failed" for each instruction set that this machine
// has, and fails if one did. Arguments: names of instruction sets (otherwise: all); ROUNDS in the environment.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "machine.h"
#include "product.h"
#include "random.h"
#include "reference.h"

namespace jaxq::test {
namespace {

// Memory of its size exactly, so that a sanitizer sees what is read or written beyond it.
struct Memory {
  explicit Memory(int64_t size) : size(size), data(new uint8_t[static_cast<size_t>(size)]) {
    for (int64_t i = 0; i < size; ++i) data[i] = static_cast<uint8_t>(generator());
  }
  uint8_t* bytes() const { return data.get(); }
  float* floats() const { return reinterpret_cast<float*>(data.get()); }
  int64_t size;
  std::unique_ptr<uint8_t[]> data;
};

// The same bits, whichever numbers NaN are.
bool alike(const Memory& a, const Memory& b, DType dtype) {
  if (dtype != DType::f32) return std::memcmp(a.bytes(), b.bytes(), static_cast<size_t>(a.size)) == 0;
  for (int64_t i = 0; i < a.size / 4; ++i) {
    const float *x = a.floats() + i, *y = b.floats() + i;
    if (!(std::isnan(*x) && std::isnan(*y)) && std::memcmp(x, y, 4) != 0) return false;
  }
  return true;
}

// Heads of attention, of examples: (batch, rows, heads, depth), as a dense layer gives them, or one head behind another;
// groups of heads may share one y. A mask of floats for all rows or for each one.
struct Case {
  Case()
      : examples(between(1, 2)),
        groups(between(1, 2)),
        of_group(between(1, 3)),
        rows(chance(0.2) ? 1 : between(1, 70)),
        columns(chance(0.3) ? 64 * between(1, 4) : chance(0.1) ? between(1000, 1100) : between(1, 140)),
        depth(chance(0.5) ? 32 : between(1, 70)),
        heads(groups * of_group),
        x(examples * rows * heads * depth),
        y(examples * columns * groups * depth),
        multiplier(columns * 4),
        bias(columns * 4),
        lo(columns * 4),
        hi(columns * 4),
        mask_rows(chance(0.5) ? 1 : rows),
        mask(examples * mask_rows * columns * 4),
        turned(chance(0.3)) {
    for (int64_t c = 0; c < columns; ++c) {
      multiplier.floats()[c] = uniform(0.2f, 1) * 1e-3f;
      bias.floats()[c] = chance(0.5) ? 0.0f : uniform(-1, 1);
      lo.floats()[c] = -INFINITY;
      hi.floats()[c] = INFINITY;
    }
    if (chance(0.1)) lo.floats()[0] = 0;
    const float beyond = chance(0.3) ? -INFINITY : chance(0.5) ? -FLT_MAX : -3e38f;
    for (int64_t i = 0; i < mask.size / 4; ++i) mask.floats()[i] = chance(0.2) ? beyond : uniform(-3, 3);
    if (chance(0.05)) mask.floats()[0] = NAN;

    p.batch[0] = examples, p.batch[1] = groups, p.batch[2] = of_group;
    p.rows = rows, p.columns = columns, p.depth = depth;
    p.x = x.bytes();
    p.x_dtype = chance(0.7) ? DType::s8 : DType::u8;
    p.x_room = x.size;
    p.x_row = turned ? depth : heads * depth;
    const int64_t x_head = turned ? rows * depth : depth;
    strides(p.x_strides, rows * heads * depth, of_group * x_head, x_head);
    p.y = y.bytes();
    const bool by_columns = chance(0.5);
    p.y_row = by_columns ? 1 : turned ? depth : groups * depth;
    p.y_step = by_columns ? columns : 1;
    strides(p.y_strides, columns * groups * depth, by_columns || turned ? columns * depth : depth, 0);
    Epilogue& e = p.epilogue;
    e = {};
    e.multiplier = multiplier.floats();
    e.bias = bias.floats();
    e.lo = lo.floats();
    e.hi = hi.floats();
    e.residual = chance(0.7) ? mask.bytes() : nullptr;
    e.residual_dtype = DType::f32;
    e.residual_stride = columns * 4;
    e.residual_repeat = 1;
    e.residual_period = mask_rows;
    e.residual_step = 1;
    e.residual_multiplier = chance(0.5) ? 1.0f : 1.5f;
    strides(p.residual_strides, mask_rows * columns * 4, 0, 0);
    p.softmax = nullptr;
  }

  static void strides(int64_t* to, int64_t example, int64_t group, int64_t head) {
    to[0] = example, to[1] = group, to[2] = head;
  }

  // The product with an output of its own, of rows `gap` values apart.
  Product to(const Memory& out, DType dtype, int64_t gap) const {
    Product q = p;
    q.epilogue.out = out.bytes();
    q.epilogue.out_dtype = dtype;
    q.epilogue.out_stride = (columns + gap) * size_of(dtype);
    const int64_t matrix = rows * q.epilogue.out_stride;
    strides(q.out_strides, heads * matrix, of_group * matrix, matrix);
    return q;
  }
  int64_t out_size(DType dtype, int64_t gap) const { return examples * heads * rows * (columns + gap) * size_of(dtype); }

  float expected(int64_t example, int64_t head, int64_t r, int64_t c) const {
    const int64_t group = head / of_group;
    const uint8_t* a = p.x + example * p.x_strides[0] + group * p.x_strides[1] + head % of_group * p.x_strides[2] + r * p.x_row;
    const uint8_t* b = p.y + example * p.y_strides[0] + group * p.y_strides[1] + c * p.y_row;
    int32_t sum = 0;
    for (int64_t i = 0; i < depth; ++i) {
      sum += (p.x_dtype == DType::s8 ? static_cast<int8_t>(a[i]) : a[i]) * static_cast<int8_t>(b[i * p.y_step]);
    }
    const Epilogue& e = p.epilogue;
    float value = times(static_cast<float>(sum), e.multiplier[c]) + e.bias[c];
    if (e.residual) {
      const float* row = mask.floats() + (example * mask_rows + (mask_rows == 1 ? 0 : r)) * columns;
      const float product = times(row[c], e.residual_multiplier);
      value += std::isnan(product) ? product : std::min(std::max(product, -FLT_MAX), FLT_MAX);
    }
    return value < e.lo[c] ? e.lo[c] : value > e.hi[c] ? e.hi[c] : value;
  }

  int64_t examples, groups, of_group, rows, columns, depth, heads;
  Memory x, y, multiplier, bias, lo, hi;
  int64_t mask_rows;
  Memory mask;
  bool turned;
  Product p;
};

void run(const Product& product, const Kernels& kernels) {
  Team alone;
  kernels.enter();
  product.run(kernels, alone, between(1, 4));
  kernels.leave();
}

bool is_right(const Kernels& kernels) {
  const Case c;
  const int64_t gap = chance(0.3) ? between(1, 9) : 0;
  const Memory scores(c.out_size(DType::f32, gap));
  run(c.to(scores, DType::f32, gap), kernels);
  for (int64_t i = 0; i < c.examples * c.heads * c.rows; ++i) {
    for (int64_t j = 0; j < c.columns; ++j) {
      const float value = c.expected(i / c.rows / c.heads, i / c.rows % c.heads, i % c.rows, j);
      const float found = scores.floats()[i * (c.columns + gap) + j];
      if (std::isnan(value) ? !std::isnan(found) : found != value) return false;
    }
  }

  const DType dtype = chance(0.6) ? DType::u8 : chance(0.5) ? DType::s8 : DType::f32;
  const float multiplier = chance(0.8) ? 255.0f : 127.0f;
  const Memory fused(c.out_size(dtype, gap));
  Memory apart(fused.size);
  std::memcpy(apart.bytes(), fused.bytes(), static_cast<size_t>(fused.size));
  Product product = c.to(fused, dtype, gap);
  product.softmax = &multiplier;
  run(product, kernels);
  const int64_t stride = (c.columns + gap) * 4, out_stride = product.epilogue.out_stride;
  const Rows rows = {scores.bytes(), DType::f32, stride, apart.bytes(), dtype, out_stride, c.columns};
  kernels.softmax(rows, multiplier, 0, c.examples * c.heads * c.rows);
  return alike(fused, apart, dtype);
}

int run(int argc, char** argv) {
  const char* rounds = std::getenv("ROUNDS");
  int wrong = 0;
  for (const Kernels* kernels : machine_kernels({argv + 1, argv + argc})) {
    generator.seed(1);
    int passed = 0, failed = 0;
    for (int i = 0; i < (rounds ? std::atoi(rounds) : 200); ++i) ++(is_right(*kernels) ? passed : failed);
    std::printf("%s: %d passed, %d failed\n", kernels->name, passed, failed);
    wrong += failed;
  }
  return wrong ? 1 : 0;
}

}  // namespace
}  // namespace jaxq::test

int main(int argc, char** argv) { return jaxq::test::run(argc, argv); }
