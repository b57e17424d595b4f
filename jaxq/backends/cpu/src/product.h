// The product of two values, x (batch, M, K) times y (batch, N, K) to (batch, M, N), and the softmax of its rows where one
// follows: the scores of attention then stay in a core's first-level cache.
#pragma once
#include <algorithm>
#include <cstdint>

#include "arena.h"
#include "input.h"
#include "kernels.h"
#include "split.h"
#include "team.h"

namespace jaxq {

struct Product {
  static constexpr int kAxes = 3;  // of batch
  int64_t batch[kAxes], x_strides[kAxes], y_strides[kAxes], out_strides[kAxes], residual_strides[kAxes];
  int64_t rows, columns, depth;
  const uint8_t* x;
  DType x_dtype;
  int64_t x_row, x_room;  // bytes from one row to the next, and from the first one to its buffer's end
  const uint8_t* y;
  int64_t y_row, y_step;
  Epilogue epilogue;
  // Null, or softmax follows: the epilogue's output is then that of softmax, quantized by this multiplier where it is of
  // bytes, and the epilogue itself gives floats.
  const float* softmax;

  int64_t batches() const { return batch[0] * batch[1] * batch[2]; }

  void run(const Kernels& kernels, Team& team, int64_t threads) const {
    const Split split({rows, rows, 32}, {1, 1, 1}, batches(), threads);
    team.parallel(batches() * split.rows, [&](int64_t task) {
      const Range some = part(rows, task % split.rows, split.rows);
      if (some.first < some.last) run_rows(kernels, task / split.rows, some);
    });
  }

 private:
  // Scores that softmax reads at once: few enough for the cache, and rows enough to share what is loaded of y.
  static constexpr int64_t kScoreBytes = 16 << 10, kLeastRows = 24, kMostRows = 48;

  // The offset of a matrix among those of the batch.
  int64_t offset(const int64_t* strides, int64_t matrix) const {
    return matrix / (batch[1] * batch[2]) * strides[0] + matrix / batch[2] % batch[1] * strides[1] +
           matrix % batch[2] * strides[2];
  }

  void run_rows(const Kernels& kernels, int64_t matrix, Range some) const {
    Window w = {};  // the rows of x as an image of one line
    w.x = x + offset(x_strides, matrix) + some.first * x_row;
    w.dtype = x_dtype, w.channels = depth, w.stride = x_row;
    w.width = w.out_width = some.last - some.first;
    w.height = w.out_height = w.kernel_h = w.kernel_w = w.stride_h = w.stride_w = w.dilation_h = w.dilation_w = 1;
    Gemm g = {};
    Input(w, 1, x_room - (w.x - x), depth, kernels).set_rows(g, 0, 0, w.width);
    uint8_t* packed = thread_scratch<1>(packed_size(columns, depth));
    kernels.pack(reinterpret_cast<const int8_t*>(y) + offset(y_strides, matrix), y_row, y_step, columns, depth, packed);
    g.b = packed;
    g.blocks = round_up(columns, kBlock) / kBlock;
    g.channels = columns;
    g.first_row = some.first;
    Epilogue e = epilogue;
    e.out += offset(out_strides, matrix);
    if (e.residual) e.residual += offset(residual_strides, matrix);
    if (softmax) return run_softmax(kernels, g, e);
    g.epilogue = &e;
    kernels.gemm(g);
  }

  // The rows of g, some at a time, to the scratch and from there by softmax to the output of e.
  void run_softmax(const Kernels& kernels, Gemm g, Epilogue e) const {
    const int64_t row_bytes = round_up(columns * 4, 64), end = g.first_row + g.rows;
    const int64_t most = std::clamp(kScoreBytes / row_bytes / kLeastRows * kLeastRows, kLeastRows, kMostRows);
    uint8_t* scores = thread_scratch<2>(std::min(most, g.rows) * row_bytes);
    Rows r = {scores, DType::f32, row_bytes, nullptr, e.out_dtype, e.out_stride, columns};
    uint8_t* const out = e.out;
    e.out_dtype = DType::f32;
    e.out_stride = row_bytes;
    g.epilogue = &e;
    for (; g.first_row < end; g.first_row += g.rows, g.column += g.rows) {
      g.rows = std::min(most, end - g.first_row);
      // An epilogue counts its output's rows from those of the whole product.
      e.out = reinterpret_cast<uint8_t*>(reinterpret_cast<uintptr_t>(scores) -
                                         static_cast<uintptr_t>(g.first_row * row_bytes));
      kernels.gemm(g);
      r.out = out + g.first_row * r.out_stride;
      kernels.softmax(r, *softmax, 0, g.rows);
    }
  }
};

}  // namespace jaxq
