// The matrix product: a block of rows and channels in registers, then the epilogue.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// kRows x (16 * kBlocks) accumulators over all of K.
template <int kRows, int kBlocks>
void gemm_block(const Gemm& g, int64_t row, int64_t block) {
  constexpr int kVectors = kBlock / kLanes;  // of one block
  const int64_t stride = packed_block(g.k), depth = round_up(g.k, 4);
  const uint8_t* b = g.b + block * stride;
  const uint8_t* a = g.a + row * g.lda;
  I32 acc[kRows][kBlocks * kVectors];
  JAXQ_UNROLL
  for (int j = 0; j < kBlocks; ++j) {
    const int32_t* sums = reinterpret_cast<const int32_t*>(b + (j + 1) * stride) - kBlock;
    JAXQ_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const I32 start = mul(load(sums + v * kLanes), all(static_cast<int32_t>(g.correction)));
      JAXQ_UNROLL
      for (int i = 0; i < kRows; ++i) acc[i][j * kVectors + v] = start;
    }
  }
  for (int64_t k = 0; k < depth; k += 4) {
    I32 line[kBlocks * kVectors];
    JAXQ_UNROLL
    for (int j = 0; j < kBlocks; ++j) {
      JAXQ_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        line[j * kVectors + v] = load_bytes(b + j * stride + k * kBlock + v * kLanes * 4);
      }
    }
    JAXQ_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const I32 x = all_bytes(a + i * g.lda + k);
      JAXQ_UNROLL
      for (int j = 0; j < kBlocks * kVectors; ++j) acc[i][j] = dot4(acc[i][j], x, line[j]);
    }
  }
  alignas(64) int32_t sums[kRows][kBlocks * kBlock];
  JAXQ_UNROLL
  for (int i = 0; i < kRows; ++i) {
    JAXQ_UNROLL
    for (int j = 0; j < kBlocks * kVectors; ++j) store(&sums[i][j * kLanes], acc[i][j]);
  }
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
