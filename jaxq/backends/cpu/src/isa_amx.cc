// AVX512-VNNI with the matrix product on AMX tiles: 16 rows x 64 bytes times 64 bytes x 16 channels to 16 x 16 int32.
#define JAXQ_ISA amx
#define JAXQ_OWN_GEMM
#include "simd_avx512.h"
#include "registers.h"
#include "epilogue.h"

namespace jaxq {
namespace amx {
namespace {

constexpr int64_t kTile = 16;

struct alignas(64) TileConfig {
  uint8_t palette, start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Tiles 0 to 3 hold sums, 4 and 5 rows of A, 6 and 7 channels of B.
void configure(int64_t rows) {
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = static_cast<uint8_t>(i < 6 ? rows : kTile);
  }
  asm volatile("ldtilecfg %0" ::"m"(config));  // GCC's intrinsic does not say that all of it is read
}

void enter() { configure(kTile); }
void leave() { _tile_release(); }

// A macro, since the intrinsics take a tile's number only as it is written.
#define JAXQ_MULTIPLY(sum, a, b) \
  do {                           \
    if constexpr (is_signed) {   \
      _tile_dpbssd(sum, a, b);   \
    } else {                     \
      _tile_dpbusd(sum, a, b);   \
    }                            \
  } while (0)

// kRows x kBlocks tiles from two tiles of rows, at `a0` and `a1`; their sums lie as 32 rows of 32 in `sums`.
template <bool is_signed, int kRows, int kBlocks>
inline void product(const uint8_t* a0, const uint8_t* a1, int64_t lda, const uint8_t* b, int64_t b_stride, int64_t depth,
                    int32_t* sums) {
  _tile_zero(0);
  if constexpr (kBlocks == 2) _tile_zero(1);
  if constexpr (kRows == 2) _tile_zero(2);
  if constexpr (kRows == 2 && kBlocks == 2) _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kDepth) {
    const uint8_t* line = b + k * kBlock;
    _tile_loadd(6, line, 64);
    _tile_loadd(4, a0 + k, lda);
    JAXQ_MULTIPLY(0, 4, 6);
    if constexpr (kBlocks == 2) {
      _tile_loadd(7, line + b_stride, 64);
      JAXQ_MULTIPLY(1, 4, 7);
    }
    if constexpr (kRows == 2) {
      _tile_loadd(5, a1 + k, lda);
      JAXQ_MULTIPLY(2, 5, 6);
      if constexpr (kBlocks == 2) JAXQ_MULTIPLY(3, 5, 7);
    }
  }
  constexpr int64_t kPitch = 2 * kTile * sizeof(int32_t);
  _tile_stored(0, sums, kPitch);
  if constexpr (kBlocks == 2) _tile_stored(1, sums + kTile, kPitch);
  if constexpr (kRows == 2) _tile_stored(2, sums + 2 * kTile * kTile, kPitch);
  if constexpr (kRows == 2 && kBlocks == 2) _tile_stored(3, sums + 2 * kTile * kTile + kTile, kPitch);
}

template <bool is_signed, int kBlocks>
void blocks_of_rows(const Gemm& g, int64_t block) {
  const int64_t stride = packed_block(g.run), depth = round_up(g.run, kDepth), channel = block * kBlock;
  const int64_t rest = g.channels - channel, channels = rest < kBlocks * kBlock ? rest : kBlocks * kBlock;
  const uint8_t* a = g.lines[0] + g.column * g.lda;
  const uint8_t* b = g.b + block * stride;
  alignas(64) int32_t sums[2 * kTile * 2 * kTile];
  const auto finish = [&](const int32_t* from, int64_t row, int64_t rows) {
    epilogue(from, 2 * kTile, *g.epilogue, g.first_row + row, rows, g.first_channel + channel, channels);
  };
  int64_t row = 0;
  while (g.rows - row > kTile) {
    // Two tiles; the second one may begin earlier, at rows that are computed twice, so that it ends with the last row.
    const int64_t second = row + 2 * kTile <= g.rows ? row + kTile : g.rows - kTile;
    product<is_signed, 2, kBlocks>(a + row * g.lda, a + second * g.lda, g.lda, b, stride, depth, sums);
    const int64_t twice = row + kTile - second;
    if (twice == 0) {
      finish(sums, row, 2 * kTile);
    } else {
      finish(sums, row, kTile);
      finish(sums + (kTile + twice) * 2 * kTile, row + kTile, kTile - twice);
    }
    row = second + kTile;
  }
  if (row < g.rows) {
    const int64_t start = g.rows >= kTile ? g.rows - kTile : 0;
    product<is_signed, 1, kBlocks>(a + start * g.lda, nullptr, g.lda, b, stride, depth, sums);
    finish(sums + (row - start) * 2 * kTile, row, g.rows - row);
  }
}

template <bool is_signed>
void all_blocks(const Gemm& g) {
  const int64_t blocks = round_up(g.channels, kBlock) / kBlock;
  int64_t block = 0;
  for (; block + 2 <= blocks; block += 2) blocks_of_rows<is_signed, 2>(g, block);
  if (block < blocks) blocks_of_rows<is_signed, 1>(g, block);
}

void gemm(const Gemm& g) {
  if (g.rows == 0) return;  // tiles have rows
  const bool few = g.rows < kTile;
  if (few) configure(g.rows);
  if (g.a_signed) {
    all_blocks<true>(g);
  } else {
    all_blocks<false>(g);
  }
  if (few) configure(kTile);
}

}  // namespace
}  // namespace amx
}  // namespace jaxq

#include "table.h"

namespace jaxq {
namespace amx {
namespace {

// GOP/s of the tiles' dot products on this thread.
double peak_of_tiles() {
  constexpr bool is_signed = true;
  const auto products = [](int64_t steps) {
    for (int64_t i = 0; i < steps; ++i) {
      JAXQ_MULTIPLY(0, 4, 6);
      JAXQ_MULTIPLY(1, 4, 7);
      JAXQ_MULTIPLY(2, 5, 6);
      JAXQ_MULTIPLY(3, 5, 7);
    }
  };
  return rate(products, 4.0 * 2 * kTile * kTile * 64);
}

constexpr Kernels with_tiles(Kernels kernels) {
  kernels.takes_signed = kernels.takes_unsigned = true;
  kernels.takes_runs = false;
  kernels.enter = enter;
  kernels.leave = leave;
  kernels.peak = peak_of_tiles;
  return kernels;
}
constexpr Kernels kWithTiles = with_tiles(kKernels);

}  // namespace
}  // namespace amx

const Kernels* kernels_amx() { return &amx::kWithTiles; }

}  // namespace jaxq
