// What every instruction set provides: one table of kernels over plain structures, all sizes and strides in them.
//
// A tensor is seen as rows of `cols` values that lie one after another; `stride` is the distance of two rows in bytes.
// Activations are NHWC: a row is a pixel, its values the channels. A kernel computes a range of rows, so that threads
// share one operation. Nothing is read or written beyond the rows given, except where a structure says so.
#pragma once
#include <cstdint>

namespace jaxq {

enum class DType : int32_t { s8 = 0, u8 = 1, f32 = 2 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 1; }

// Output channels of one packed block, and the multiple of K that it is padded to with zeros.
constexpr int64_t kBlock = 16;
constexpr int64_t kDepth = 64;

// Before a loop over an array of vectors: unrolled early enough that the array is kept in registers.
#define JAXQ_UNROLL _Pragma("GCC unroll 16")

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A packed weight (N, K): for each block of 16 output channels, K / 4 (padded) lines of 16 channels x 4 values of K, the
// operand of one 512-bit 4-way dot product, of half a line in 256 bits, of a quarter on Arm, and 16 lines of an AMX
// tile; then 16 int32: 128 * sum(w) of each channel.
constexpr int64_t packed_block(int64_t k) { return round_up(k, kDepth) * kBlock + kBlock * 4; }
constexpr int64_t depth_of(int64_t runs, int64_t run) { return runs * round_up(run, 4); }
constexpr int64_t packed_size(int64_t n, int64_t k) { return round_up(n, kBlock) / kBlock * packed_block(k); }

// A packed depthwise weight (KH, KW, C): for each block of 64 channels [KW][KH / 4, rounded up][64 channels][4], four
// rows of the kernel beside one another (zeros below the last), then 64 int32: 128 * sum(w) of each channel. The 64
// channels are in the order in which 128-bit shuffles interleave them: [c / 4 % 4][c / 16][c % 4].
constexpr int64_t depthwise_size(int64_t kh, int64_t kw, int64_t c) {
  return round_up(c, 64) * 4 * (kw * (round_up(kh, 4) / 4) + 1);
}

// A weight in groups (N, K): for each block of 16 output channels, lines of 16 bytes. Of int8 a line is an input, of int4
// two, the even one in the low halves of the bytes. Its scales (N, groups) likewise: a line of 16 floats is a group.
constexpr int64_t lines_of(int64_t depth, bool is_int4) { return is_int4 ? (depth + 1) / 2 : depth; }

// numerics.epilogue, for rows of accumulators: y = acc * multiplier[c] (* row_scale) + bias[c] + residual *
// residual_multiplier, each product rounded before it is added; clipped to [lo[c], hi[c]]; rounded half to even; looked up in the table.
struct Epilogue {
  const float* multiplier;
  const float* bias;
  const float* lo;
  const float* hi;
  const float* row_scale;  // one for each row of a matrix product, or null
  const uint8_t* table;    // 256 entries by the byte of the int8 result, or null

  const uint8_t* residual;  // or null; the row of output row r is (r / residual_repeat) % residual_period
  DType residual_dtype;
  int64_t residual_stride;
  int64_t residual_repeat;
  int64_t residual_period;
  int64_t residual_step;  // 1, or 0: one value for all channels of a row
  float residual_multiplier;

  uint8_t* out;
  DType out_dtype;
  int64_t out_stride;
};

// Rows of A (M, K) times the packed B to the epilogue. `a_signed` tells int8 from uint8 rows. An instruction set takes
// the signs that `takes_signed`, `takes_unsigned` say; other rows come with their sign bit flipped, and `correction` is
// what the blocks' sums are multiplied with to make up for it (-1: int8 as uint8, 1: uint8 as int8, 0: not flipped).
//
// A row may lie in several runs of memory, as a convolution's window does, whose rows begin some pixels apart: row r's
// begin at lines[p / width] + p % width * lda, where p = column + r. A run is read to the next multiple of 4 bytes, which
// B has zeros for. Instruction sets that do not take runs have one, read to the next multiple of 64, and one line.
struct Gemm {
  const uint8_t* const* lines;
  int64_t width, column, lda;
  int64_t runs, run, step;  // `run` bytes each, `step` apart
  bool a_signed;
  int correction;
  const uint8_t* b;       // of the first output channel, at a block's start
  int64_t blocks;         // that lie there: those beyond `channels` may be wanted next
  int64_t rows;
  int64_t first_row;      // of the epilogue's rows
  int64_t first_channel;  // of the epilogue's channels, a multiple of 16
  int64_t channels;       // to compute
  const Epilogue* epilogue;

  int64_t depth() const { return depth_of(runs, run); }
};

// Rows of floats times a weight in groups to rows of floats: the sum of a group's products times its scale, added up
// group by group; bias, residual, clipped. An instruction set gives the same bits however rows and channels are cut.
struct GroupedDot {
  const uint8_t* x;  // float32
  int64_t x_stride;
  const uint8_t* weight;  // of the first output channel, at a block's start
  const float* scale;
  bool is_int4;
  int64_t depth, group_size;
  int64_t rows;
  int64_t first_row;      // of the epilogue's rows
  int64_t first_channel;  // of the epilogue's channels, a multiple of 16
  int64_t channels;       // to compute
  float lo, hi;
  const Epilogue* epilogue;  // its bias, which may be null, its residual and its output
  float* scratch;            // scratch_of(...) floats

  int64_t groups() const { return (depth + group_size - 1) / group_size; }
  // Inputs whose weights are floats at a time, where many rows share them: whole groups.
  int64_t chunk() const {
    const int64_t inputs = group_size < kInputs ? kInputs / group_size * group_size : group_size;
    return inputs < depth ? inputs : depth;
  }
  int64_t scratch_size() const { return rows * kMostBlocks * kBlock + chunk() * kMostBlocks * kBlock; }

  static constexpr int64_t kInputs = 256, kMostBlocks = 8;
};

// A window over an image of rows of channels: convolutions and pools. Padding below and on the right follows from the
// output's size.
struct Window {
  const uint8_t* x;  // pixel (image, i, j) lies at x + ((image * height + i) * width + j) * stride
  DType dtype;
  int64_t height, width, channels, stride;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  int64_t out_height, out_width;
};

// Rows of x, and of y where there is one, as the accumulators of an epilogue: x, or x * y. The row of y is
// (r / y_repeat) % y_period; y_step 0 takes one value for all channels.
struct Elementwise {
  const uint8_t* x;
  DType x_dtype;
  int64_t x_stride;
  const uint8_t* y;  // or null
  DType y_dtype;
  int64_t y_stride, y_repeat, y_period, y_step;
  int64_t channels;
};

// Sums over `terms` consecutive rows.
struct Sum {
  const uint8_t* x;
  DType dtype;
  int64_t stride;
  int64_t terms;
  int64_t channels;
};

// Rows to rows, `cols` values each.
struct Rows {
  const uint8_t* x;
  DType x_dtype;
  int64_t x_stride;
  uint8_t* out;
  DType out_dtype;
  int64_t out_stride;
  int64_t cols;
};

// Layer norm, or RMS norm, which does not subtract the mean, of rows to `out`, as floats or quantized by the multiplier;
// and once more, quantized, to `bytes`, unless that is null.
struct Norm {
  const float* scale;  // of each channel, or null
  const float* bias;
  float epsilon;
  bool center;  // subtract the mean
  float multiplier;
  uint8_t* bytes;
  DType bytes_dtype;
  int64_t bytes_stride;
};

// factor * f(input_factor * x): f(x) is x times the normal distribution at x, or x * sigmoid(linear * x + cubic * x^3).
struct Function {
  enum Kind : int64_t { normal = 0, sigmoid = 1 } kind;
  float linear, cubic;  // from 0 on
  float factor, input_factor;
};

// Rows of floats that others are added to. That of output row r is (r / repeat) % period; where there is an index, int32
// numbers `index_stride` apart, the row of `rows` whose number stands there. One that is none is all NaN, or the nearest
// if `clamps`. `step` 0: one value for all columns.
struct RowTerm {
  const uint8_t* x;
  int64_t x_stride;
  int64_t repeat, period, step;
  const uint8_t* index;  // or null
  int64_t index_stride, rows;
  bool clamps;
};

// The terms, added in this order, and clipped; NaN stays.
struct RowSum {
  static constexpr int64_t kMost = 8;
  RowTerm term[kMost];
  int64_t terms;
  float lo, hi;
  uint8_t* out;
  int64_t out_stride, cols;
};

// Sums over `rows` consecutive rows of x, each times that of the weight if there is one; then times the scale,
// and clipped.
struct WeightedSum {
  const uint8_t* x;
  int64_t x_stride, rows;
  RowTerm weight;      // x null: none
  const float* scale;  // of each column, or null
  float lo, hi;
  uint8_t* out;
  int64_t out_stride, cols;
};

// The rows of a convolution's input patches (from channel `first_channel` on, of `channels` in the group), `lda` apart: for
// each line of the kernel kernel_w * channels bytes, rounded up to 4. `flip` is xor-ed to every byte, of the padding too.
struct Patches {
  const Window* window;
  int64_t first_channel, channels;
  uint8_t flip;
  uint8_t* out;
  int64_t lda;
};

// Lines of an image, padded, without gaps: of each the pixels from column `left` on (which may be negative), `columns` of
// them, with channels and flip as above.
struct Band {
  const Window* window;
  int64_t first_channel, channels;
  uint8_t flip;
  uint8_t* out;
  int64_t left, columns;
};

struct Kernels {
  const char* name;
  bool takes_signed, takes_unsigned, takes_runs;
  // Around the kernels on every thread that runs them.
  void (*enter)();
  void (*leave)();

  // Operations a second, in units of 10^9, that the 4-way dot product reaches on this thread on nothing but registers:
  // measured, in about 20 ms.
  double (*peak)();

  void (*gemm)(const Gemm&);
  void (*grouped_dot)(const GroupedDot&);
  void (*patches)(const Patches&, int64_t first, int64_t last);  // output pixels, counted over all images
  void (*band)(const Band&, int64_t image, int64_t first, int64_t last);  // lines, which may lie outside of the image
  // (N, K) int8 with rows `stride` apart and values `step` apart to the packed form.
  void (*pack)(const int8_t* w, int64_t stride, int64_t step, int64_t n, int64_t k, uint8_t* packed);

  // (KH, KW, C) int8 to the packed form.
  void (*pack_depthwise)(const int8_t* w, int64_t kernel_h, int64_t kernel_w, int64_t channels, uint8_t* packed);
  void (*depthwise)(const Window&, const uint8_t* packed, const Epilogue&, int64_t first, int64_t last);  // output lines
  void (*max_pool)(const Window&, uint8_t* out, int64_t out_stride, int64_t first, int64_t last);         // output lines
  void (*sum_pool)(const Window&, const Epilogue&, int64_t first, int64_t last);                          // output lines
  void (*elementwise)(const Elementwise&, const Epilogue&, int64_t first, int64_t last);                  // rows
  void (*sum)(const Sum&, const Epilogue&, int64_t first, int64_t last);                                  // output rows
  void (*table)(const Rows&, const uint8_t* table, int64_t first, int64_t last);
  // q = round(clip(x * multiplier[c])), NaN to 0; x = q * scale[c]; `step` 0: one multiplier or scale for all.
  void (*quantize)(const Rows&, const float* multiplier, int64_t step, int64_t first, int64_t last);
  void (*dequantize)(const Rows&, const float* scale, int64_t step, int64_t first, int64_t last);
  void (*function)(const Rows&, const Function&, int64_t first, int64_t last);  // float32 to float32
  // Each row of float32 to int8 by a scale of its own, which goes to `scales`; `factor` (of each channel) may be null. Of
  // a function of the rows, if there is one: `made` has room for a row of that.
  void (*quantize_rows)(const Rows&, const float* factor, const Function*, float* made, float* scales, int64_t first,
                        int64_t last);
  // float32 rows to float32; or, where the output is of bytes, quantized by the multiplier.
  void (*softmax)(const Rows&, float multiplier, int64_t first, int64_t last);
  void (*layer_norm)(const Rows&, const Norm&, int64_t first, int64_t last);  // likewise
  void (*add_rows)(const RowSum&, int64_t first, int64_t last);
  void (*sum_rows)(const WeightedSum&, int64_t first, int64_t last);  // output rows
};

}  // namespace jaxq
