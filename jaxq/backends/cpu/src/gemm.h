// The matrix product: a block of rows and channels in registers, then the epilogue.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// kRows x (16 * kBlocks) accumulators over all of K.
template <int kRows, int kBlocks>
void gemm_block(const Gemm& g, int64_t row, int64_t block) {
  constexpr int kVectors = kBlock / kLanes;  // of one block
  constexpr int kWidth = kBlocks * kVectors;
  const int64_t stride = packed_block(g.k), depth = round_up(g.k, 4), lda = g.lda;
  const uint8_t* b = g.b + block * stride;
  const uint8_t* a = g.a + row * lda;
  Vectors<kRows * kWidth> acc;
  each<kWidth>([&](auto j) JAXQ_INLINE {
    constexpr int v = j.value;
    const int32_t* sums = reinterpret_cast<const int32_t*>(b + (v / kVectors + 1) * stride) - kBlock;
    const I32 start = mul(load(sums + v % kVectors * kLanes), all(static_cast<int32_t>(g.correction)));
    each<kRows>([&](auto i) JAXQ_INLINE { at<i.value * kWidth + v>(acc) = start; });
  });
  for (int64_t k = 0; k < depth; k += 4) {
    Vectors<kWidth> line;
    each<kWidth>([&](auto j) JAXQ_INLINE {
      constexpr int v = j.value;
      at<v>(line) = load_bytes(b + v / kVectors * stride + k * kBlock + v % kVectors * kLanes * 4);
    });
    each<kRows>([&](auto i) JAXQ_INLINE {
      const I32 x = all_bytes(a + i.value * lda + k);
      each<kWidth>([&](auto j) JAXQ_INLINE {
        I32& sum = at<i.value * kWidth + j.value>(acc);
        sum = dot4(sum, x, at<j.value>(line));
      });
    });
  }
  alignas(64) int32_t sums[kRows][kBlocks * kBlock];
  each<kRows>([&](auto i) JAXQ_INLINE {
    each<kWidth>([&](auto j) JAXQ_INLINE { store(&sums[i.value][j.value * kLanes], at<i.value * kWidth + j.value>(acc)); });
  });
  const int64_t channel = block * kBlock, rest = g.channels - channel;
  epilogue(&sums[0][0], kBlocks * kBlock, *g.epilogue, g.first_row + row, kRows, g.first_channel + channel,
           rest < kBlocks * kBlock ? rest : kBlocks * kBlock);
}

// All rows of kBlocks blocks of channels: kRows at a time, then those that are left.
template <int kRows, int kBlocks>
void gemm_rows(const Gemm& g, int64_t row, int64_t block) {
  for (; row + kRows <= g.rows; row += kRows) gemm_block<kRows, kBlocks>(g, row, block);
  if constexpr (kRows > 1) {
    if (row < g.rows) gemm_rows<kRows / 2, kBlocks>(g, row, block);
  }
}

inline void gemm(const Gemm& g) {
  const int64_t blocks = round_up(g.channels, kBlock) / kBlock;
  int64_t block = 0;
  for (; block + kWide <= blocks; block += kWide) gemm_rows<kWideRows, kWide>(g, 0, block);
  for (; block < blocks; ++block) gemm_rows<kNarrowRows, 1>(g, 0, block);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
