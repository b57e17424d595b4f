// The matrix product, and the packing of its weights.
#include <algorithm>
#include <string>
#include <vector>

#include "epilogue_case.h"
#include "reference.h"
#include "tests.h"

namespace jaxq::test {

namespace {

bool takes(DType dtype) { return dtype == DType::s8 ? kernels->takes_signed : kernels->takes_unsigned; }
int correction_of(DType dtype) { return takes(dtype) ? 0 : dtype == DType::s8 ? -1 : 1; }

}  // namespace

void test_pack() {
  const int64_t n = some_channels(), k = chance(0.5) ? between(1, 300) : one_of<int64_t>({64, 128, 256});
  // (N, K), its transpose, or neither.
  const bool turned = chance(0.5);
  const int64_t apart = chance(0.7) ? 1 : between(2, 3), stride = (turned ? 1 : k) * apart, step = (turned ? n : 1) * apart;
  Buffer<uint8_t> w((n - 1) * stride + (k - 1) * step + 1), packed(packed_size(n, k));
  fill_random(w.bytes(), w.size);
  fill_random(packed.bytes(), packed.size);
  Bytes expected(static_cast<size_t>(packed.size));
  for (int64_t c = 0; c < n; ++c) {
    uint8_t* block = expected.data() + c / kBlock * packed_block(k);
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      const uint8_t byte = w[c * stride + i * step];
      block[(i / 4 * kBlock + c % kBlock) * 4 + i % 4] = byte;
      sum += static_cast<int8_t>(byte);
    }
    reinterpret_cast<int32_t*>(block + packed_block(k) - 4 * kBlock)[c % kBlock] = 128 * sum;
  }
  kernels->pack(reinterpret_cast<const int8_t*>(w.memory), stride, step, n, k, packed.memory);
  check(same(expected, packed), "pack " + std::to_string(n) + " x " + std::to_string(k));
}

void test_gemm() {
  const bool takes_runs = kernels->takes_runs;
  const int64_t m = between(1, 40), n = some_channels(), run = chance(0.5) ? between(1, 300) : one_of<int64_t>({64, 128, 256});
  const int64_t runs = takes_runs ? between(1, 3) : 1, width = takes_runs ? between(1, m) : m, lines = (m - 1) / width + 1;
  const int64_t lda = takes_runs && chance(0.5) ? between(1, run) : run + between(0, 9), step = between(0, run + 9);
  const int64_t pitch = between(0, width * lda), k = runs * run, depth = depth_of(runs, run);
  const DType dtype = some_bytes();
  Buffer<uint8_t> w(n * k), spread(n * depth), packed(packed_size(n, takes_runs ? depth : k));
  fill_random(w.bytes(), w.size);
  const int8_t* weight = reinterpret_cast<const int8_t*>(w.memory);
  for (int64_t i = 0; i < n * depth; ++i) {
    const int64_t c = i / depth, r = i % depth / round_up(run, 4), at = i % round_up(run, 4);
    spread[i] = at < run ? w[c * k + r * run + at] : 0;
  }
  if (takes_runs) {
    kernels->pack(reinterpret_cast<const int8_t*>(spread.memory), depth, 1, n, depth, packed.memory);
  } else {
    kernels->pack(weight, k, 1, n, k, packed.memory);
  }
  const int64_t readable = (lines - 1) * pitch + (width - 1) * lda + (runs - 1) * step + round_up(run, takes_runs ? 4 : kDepth);
  Buffer<uint8_t> a(readable), flipped(readable);
  fill_random(a.bytes(), a.size);
  const bool flips = !takes(dtype);
  for (int64_t i = 0; i < readable; ++i) flipped[i] = static_cast<uint8_t>(a[i] ^ (flips ? 0x80 : 0));
  EpilogueCase c(m, n, 127.0f * 127.0f * static_cast<float>(k), true);
  kernels->enter();
  in_parts(m, [&](int64_t first, int64_t last) {
    const int64_t channel = between(0, (n - 1) / kBlock) * kBlock;
    std::vector<const uint8_t*> starts;
    for (int64_t line = first / width; line <= (last - 1) / width; ++line) starts.push_back(flipped.memory + line * pitch);
    for (int half = 0; half < 2; ++half) {
      const int64_t begin = half ? channel : 0, end = half ? n : channel;
      if (begin == end) continue;
      Gemm g = {};
      g.lines = starts.data();
      g.width = width, g.column = first % width, g.lda = lda, g.runs = runs, g.run = run, g.step = step;
      g.a_signed = takes(DType::s8) && (flips || dtype == DType::s8);
      g.correction = correction_of(dtype);
      g.b = packed.memory + begin / kBlock * packed_block(takes_runs ? depth : k);
      g.blocks = (n - begin + kBlock - 1) / kBlock;
      g.rows = last - first, g.first_row = first, g.first_channel = begin, g.channels = end - begin;
      g.epilogue = &c.e;
      kernels->gemm(g);
    }
  });
  kernels->leave();
  for (int64_t r = 0; r < m; ++r) {
    const uint8_t* row = a.memory + r / width * pitch + r % width * lda;
    for (int64_t j = 0; j < n; ++j) {
      int32_t acc = 0;
      for (int64_t i = 0; i < k; ++i) acc += value(row + i / run * step + i % run, dtype) * weight[j * k + i];
      c.expect(r, j, acc);
    }
  }
  check(c.right(), "gemm " + std::to_string(runs) + " runs of " + std::to_string(run) + c.describe());
}

}  // namespace jaxq::test
