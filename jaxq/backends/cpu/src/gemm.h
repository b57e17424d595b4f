// The matrix product: a block of rows and channels in registers, then the epilogue.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// kRows x (16 * kBlocks) accumulators over all of K. Meanwhile, a line of `ahead` at each step comes nearer.
template <int kRows, int kBlocks>
void gemm_block(const Gemm& g, int64_t row, int64_t block, const uint8_t* ahead) {
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
    __builtin_prefetch(ahead + k * kBlock, 0, 2);
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

template <int kRows, int kBlocks>
JAXQ_INLINE inline void gemm_piece(const Gemm& g, int64_t row, int64_t rows, int64_t block, const uint8_t* ahead) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return gemm_block<kRows, kBlocks>(g, row, block, ahead);
    gemm_piece<kRows - 1, kBlocks>(g, row, rows, block, ahead);
  }
}

// All rows of kBlocks blocks of channels, in pieces of kRows at most and about the same size. The first of them fetch
// the blocks that come next. Returns the number of the next block.
template <int kRows, int kBlocks>
int64_t gemm_rows(const Gemm& g, int64_t block, int64_t blocks) {
  const int64_t stride = packed_block(g.k), end = block + 2 * kBlocks < blocks ? block + 2 * kBlocks : blocks;
  int64_t next = block + kBlocks, row = 0;
  for (int64_t pieces = (g.rows + kRows - 1) / kRows; pieces; --pieces) {
    const int64_t rows = (g.rows - row + pieces - 1) / pieces;
    gemm_piece<kRows, kBlocks>(g, row, rows, block, g.b + (next < end ? next++ : block) * stride);
    row += rows;
  }
  return block + kBlocks;
}

// Calls for kBlocks blocks at once, as long as that many are left, then for fewer.
template <int kBlocks>
int64_t gemm_blocks(const Gemm& g, int64_t block, int64_t blocks) {
  if constexpr (kBlocks > 0) {
    while (blocks - block >= kBlocks) block = gemm_rows<rows_of(kBlocks), kBlocks>(g, block, blocks);
    return gemm_blocks<kBlocks - 1>(g, block, blocks);
  }
  return block;
}

inline void gemm(const Gemm& g) {
  const int64_t blocks = round_up(g.channels, kBlock) / kBlock;
  int64_t block = 0;
  if (g.rows <= kFewRows) {  // as many sums as the dot product's latency asks for
    while (blocks - block >= kManyBlocks) block = gemm_rows<kFewRows, kManyBlocks>(g, block, blocks);
  }
  if constexpr (kWide > 1) {  // rather one more than one alone
    if ((blocks - block) % kWide == 1 && blocks - block > 1) block = gemm_rows<rows_of(kWide + 1), kWide + 1>(g, block, blocks);
  }
  gemm_blocks<kWide>(g, block, blocks);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
