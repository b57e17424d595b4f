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

// What moves on from one piece of a product's rows to the next: where they lie, their outputs, and what a piece fetches
// for later.
class Progress {
 public:
  Progress(const Gemm& g, const uint8_t* ahead, const uint8_t* end)
      : row(g.first_row),
        ahead(ahead),
        end(end),
        line_(g.lines),
        width_(g.width),
        column_(g.column),
        lda_(g.lda),
        at_(*g.lines + g.column * g.lda) {}

  int64_t row;           // of the epilogue's
  const uint8_t* ahead;  // a block of B, up to `end`
  const uint8_t* end;

  const uint8_t* next_row() {
    if (column_ == width_) column_ = 0, at_ = *++line_;
    const uint8_t* begin = at_;
    at_ += lda_;
    ++column_;
    return begin;
  }

 private:
  const uint8_t* const* line_;
  int64_t width_, column_, lda_;
  const uint8_t* at_;
};

// So many pieces of kRows rows. Each fetches a line of the block ahead with each step, while there is one.
template <int kRows, int kBlocks>
void gemm_pieces(const Gemm& g, const Panel<kBlocks>& panel, const PanelFinisher<kBlocks>& finisher, int64_t pieces,
                 Progress& progress) {
  constexpr int kVectors = Panel<kBlocks>::kVectors, kOfBlock = kBlock / kLanes;
  const int64_t stride = panel.stride, length = round_up(g.run, 4), runs = g.runs, step = g.step;
  for (; pieces; --pieces, progress.row += kRows) {
    const uint8_t* a[kRows];
    each<kRows>([&](auto i) JAXQ_INLINE { a[i.value] = progress.next_row(); });
    Vectors<kRows * kVectors> acc;
    each<kVectors>([&](auto j) JAXQ_INLINE {
      const I32 start = load(panel.start + j.value * kLanes);
      each<kRows>([&](auto i) JAXQ_INLINE { at<i.value * kVectors + j.value>(acc) = start; });
    });
    const auto add_products = [&](auto fetches) JAXQ_INLINE {
      const uint8_t* b = panel.b;
      const int64_t next = progress.ahead - b;
      for (int64_t r = 0; r < runs; ++r) {
        const int64_t begin = r * step, end = begin + length;
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
    if (progress.ahead < progress.end) {
      add_products(Index<1>());
      progress.ahead += stride;
    } else {
      add_products(Index<0>());
    }
    finisher.template finish<kRows, kVectors, kRows + 1 >= rows_of(kBlocks)>(acc, progress.row);
  }
}

// The like, of `count` <= kRows rows each.
template <int kRows, int kBlocks>
JAXQ_INLINE inline void gemm_pieces_of(int64_t count, const Gemm& g, const Panel<kBlocks>& panel,
                                       const PanelFinisher<kBlocks>& finisher, int64_t pieces, Progress& progress) {
  if constexpr (kRows > 0) {
    if (count == kRows) return gemm_pieces<kRows, kBlocks>(g, panel, finisher, pieces, progress);
    gemm_pieces_of<kRows - 1, kBlocks>(count, g, panel, finisher, pieces, progress);
  }
}

// All rows of kBlocks blocks of channels, in pieces of kRows at most that differ by one row at most. The first of them
// fetch the blocks that come next. Returns the number of the next block.
template <int kRows, int kBlocks>
int64_t gemm_rows(const Gemm& g, int64_t block) {
  const Panel<kBlocks> panel(g, block);
  const int64_t channel = block * kBlock, rest = g.channels - channel;
  const PanelFinisher<kBlocks> finisher(*g.epilogue, g.first_channel + channel,
                                        rest < panel.kChannels ? rest : panel.kChannels);
  const int64_t last = block + 2 * kBlocks < g.blocks ? block + 2 * kBlocks : g.blocks;
  Progress progress(g, panel.b + kBlocks * panel.stride, g.b + last * panel.stride);
  const int64_t pieces = (g.rows + kRows - 1) / kRows, count = g.rows / pieces, larger = g.rows % pieces;
  if (larger) gemm_pieces_of<kRows, kBlocks>(count + 1, g, panel, finisher, larger, progress);
  gemm_pieces_of<kRows, kBlocks>(count, g, panel, finisher, pieces - larger, progress);
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
  if (g.rows == 0) return;
  const int64_t blocks = round_up(g.channels, kBlock) / kBlock;
  int64_t block = 0;
  if (g.rows <= kFewRows) {  // as many sums as the dot product's latency asks for
    while (blocks - block >= kManyBlocks) block = gemm_rows<kFewRows, kManyBlocks>(g, block);
  }
  gemm_blocks<kWide>(g, block, blocks);
}

}  // namespace JAXQ_ISA
}  // namespace jaxq
