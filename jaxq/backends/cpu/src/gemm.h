// The matrix product: a block of rows and channels in registers, then the epilogue.
#pragma once

namespace jaxq {
namespace JAXQ_ISA {

// 16 * kBlocks packed channels, what the rows of all pieces share.
template <int kBlocks>
struct Panel {
  static constexpr int kChannels = kBlocks * kBlock, kVectors = kChannels / kLanes;
  static constexpr int kGroups = (kChannels + kWidth - 1) / kWidth;
  const uint8_t* b;
  int64_t stride;  // from one block to the next
  alignas(64) int32_t start[kChannels];

  Panel(const Gemm& g, int64_t block) : b(g.b + block * packed_block(g.depth())), stride(packed_block(g.depth())) {
    const I32 correction = all(static_cast<int32_t>(g.correction));
    for (int v = 0; v < kVectors; ++v) {
      const int32_t* sums = reinterpret_cast<const int32_t*>(b + (v * kLanes / kBlock + 1) * stride) - kBlock;
      store(start + v * kLanes, mul(load(sums + v * kLanes % kBlock), correction));
    }
  }
};

template <int kBlocks>
using PanelFinisher = Finisher<Panel<kBlocks>::kGroups>;

// kRows rows, `rows` where each begins, to the outputs from `row` on. Meanwhile, a line of `ahead` at each step comes
// nearer, unless it is null.
template <int kRows, int kBlocks>
void gemm_block(const Gemm& g, const Panel<kBlocks>& panel, const PanelFinisher<kBlocks>& finisher,
                const uint8_t* const* rows, const uint8_t* ahead, int64_t row) {
  constexpr int kVectors = Panel<kBlocks>::kVectors, kOfBlock = kBlock / kLanes;
  const uint8_t* a[kRows];
  each<kRows>([&](auto i) JAXQ_INLINE { a[i.value] = rows[i.value]; });
  Vectors<kRows * kVectors> acc;
  each<kVectors>([&](auto j) JAXQ_INLINE {
    const I32 start = load(panel.start + j.value * kLanes);
    each<kRows>([&](auto i) JAXQ_INLINE { at<i.value * kVectors + j.value>(acc) = start; });
  });
  const auto add_products = [&](auto fetches) JAXQ_INLINE {
    const uint8_t* b = panel.b;
    const int64_t stride = panel.stride, next = ahead - b, length = round_up(g.run, 4);
    for (int64_t r = 0; r < g.runs; ++r) {
      const int64_t begin = r * g.step, end = begin + length;
      for (int64_t k = begin; k < end; k += 4, b += 4 * kBlock) {
        if constexpr (fetches.value) __builtin_prefetch(b + next, 0, 2);
        Vectors<kVectors> line;
        each<kVectors>([&](auto j) JAXQ_INLINE {
          constexpr int v = j.value;
          at<v>(line) = load_bytes(b + v / kOfBlock * stride + v % kOfBlock * kLanes * 4);
        });
        each<kRows>([&](auto i) JAXQ_INLINE {
          const I32 x = all_bytes(a[i.value] + k);
          each<kVectors>([&](auto j) JAXQ_INLINE {
            I32& sum = at<i.value * kVectors + j.value>(acc);
            sum = dot4(sum, x, at<j.value>(line));
          });
        });
      }
    }
  };
  if (ahead) {
    add_products(Index<1>());
  } else {
    add_products(Index<0>());
  }
  finisher.template finish<kRows, kVectors, kRows + 1 >= rows_of(kBlocks)>(acc, row);
}

template <int kRows, int kBlocks>
JAXQ_INLINE inline void gemm_piece(const Gemm& g, const Panel<kBlocks>& panel, const PanelFinisher<kBlocks>& finisher,
                                   const uint8_t* const* rows, int64_t count, const uint8_t* ahead, int64_t row) {
  if constexpr (kRows > 0) {
    if (count == kRows) return gemm_block<kRows, kBlocks>(g, panel, finisher, rows, ahead, row);
    gemm_piece<kRows - 1, kBlocks>(g, panel, finisher, rows, count, ahead, row);
  }
}

// All rows of kBlocks blocks of channels, in pieces of kRows at most and about the same size. The first of them fetch
// the blocks that come next. Returns the number of the next block.
template <int kRows, int kBlocks>
int64_t gemm_rows(const Gemm& g, int64_t block) {
  const Panel<kBlocks> panel(g, block);
  const int64_t channel = block * kBlock, rest = g.channels - channel;
  const PanelFinisher<kBlocks> finisher(*g.epilogue, g.first_channel + channel,
                                        rest < panel.kChannels ? rest : panel.kChannels);
  const int64_t end = block + 2 * kBlocks < g.blocks ? block + 2 * kBlocks : g.blocks;
  int64_t next = block + kBlocks, row = 0, line = 0, column = g.column;
  for (int64_t pieces = (g.rows + kRows - 1) / kRows; pieces; --pieces) {
    const int64_t count = (g.rows - row + pieces - 1) / pieces;
    const uint8_t* rows[kRows];
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = g.lines[line] + column * g.lda;
      if (++column == g.width) column = 0, ++line;
    }
    const uint8_t* ahead = next < end ? g.b + next++ * panel.stride : nullptr;
    gemm_piece<kRows, kBlocks>(g, panel, finisher, rows, count, ahead, g.first_row + row);
    row += count;
  }
  finisher.look_up(g.first_row, g.rows);
  return block + kBlocks;
}

// Calls for kBlocks blocks at once, as long as that many are left, then for fewer.
template <int kBlocks>
int64_t gemm_blocks(const Gemm& g, int64_t block, int64_t blocks) {
  if constexpr (kBlocks > 0) {
    while (blocks - block >= kBlocks) block = gemm_rows<rows_of(kBlocks), kBlocks>(g, block);
    return gemm_blocks<kBlocks - 1>(g, block, blocks);
  }
  return block;
}

inline void gemm(const Gemm& g) {
  const int64_t blocks = round_up(g.channels, kBlock) / kBlock;
  int64_t block = 0;
  if (g.rows <= kFewRows) {  // as many sums as the dot product's latency asks for
    while (blocks - block >= kManyBlocks) block = gemm_rows<kFewRows, kManyBlocks>(g, block);
  }
  gemm_blocks<kWide>(g, block, blocks);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
