// The operations of a region's program: each reads its operands, checked to lie in their buffers, and hands its kernel's
// work out. A new operation is a number in `run`, its function here, the reading of its fields in a *_fields.h if they are
// many, its kernel in kernels.h, and its row in jaxq/backends/cpu/program.py.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "arena.h"
#include "copy.h"
#include "epilogue_fields.h"
#include "expansion.h"
#include "grouped_fields.h"
#include "input.h"
#include "kernels.h"
#include "product_fields.h"
#include "program.h"
#include "row_fields.h"
#include "row_sum_fields.h"
#include "split.h"
#include "team.h"
#include "window_fields.h"

namespace jaxq {

using Place = Reader::Place;

// Below so many multiply-adds, or bytes moved, an operation is one task: handing it out would take longer.
constexpr int64_t kSmall = 1 << 15;
// A task's rows of A, and the weights that it reads again and again, stay in a core's second-level cache.
constexpr int64_t kRowsBytes = 256 << 10, kWeightBytes = 768 << 10;

// Runs a program's operations, one after another, each on all threads of the team.
class Operations {
 public:
  Operations(Reader reader, const Kernels& kernels, Team& team) : read_(std::move(reader)), kernels_(kernels), team_(team) {}

  void run(int64_t operations) {
    for (int64_t i = 0; i < operations; ++i) {
      switch (read_.number()) {
        case 0: convolution(); break;
        case 1: depthwise(); break;
        case 2: matrix_product(); break;
        case 3: elementwise(); break;
        case 4: max_pool(); break;
        case 5: sum_pool(); break;
        case 6: sum(); break;
        case 7: table(); break;
        case 8: quantize(); break;
        case 9: dequantize(); break;
        case 10: softmax(); break;
        case 11: layer_norm(); break;
        case 12: copy(); break;
        case 13: quantize_rows(); break;
        case 14: weight_only_dot(); break;
        case 15: function(); break;
        case 16: fill(); break;
        case 17: add_rows(); break;
        case 18: sum_rows(); break;
        case 19: expansion(); break;
        default: throw Invalid("the program holds an operation that this library does not know");
      }
    }
    if (!read_.done()) throw Invalid("the program goes on behind its last operation");
  }

 private:
  void convolution() {
    int64_t images;
    Place x;
    const Window w = window(read_, images, x);
    const int64_t groups = read_.positive(), features = read_.positive();
    if (w.channels % groups || features % groups) throw Invalid("the groups of a convolution do not divide its channels");
    const int64_t channels = w.channels / groups, of_group = features / groups;
    const int64_t k = depth_of(w.kernel_h, w.kernel_w * channels), block = packed_block(k);
    const int64_t rows = images * w.out_height * w.out_width;
    const Place weight = read_.place();
    const int64_t group_bytes = packed_size(of_group, k);
    Reader::check(weight, extent(groups, group_bytes, group_bytes));
    const Epilogue e = epilogue(read_, rows, features);
    if (rows == 0) return;

    const Input input(w, images, x.room, channels, kernels_);
    const int64_t all_blocks = round_up(of_group, kBlock) / kBlock;
    const Things pixels = {rows, std::clamp<int64_t>(kRowsBytes / input.bytes_of_row(), 32, 256), 48};
    const Things blocks_of_channels = {all_blocks, std::max<int64_t>(kWeightBytes / block, 4), 8};
    const Split split(pixels, blocks_of_channels, groups, threads_for(rows * k * features / 8));
    const int64_t unit = std::min<int64_t>(all_blocks / split.channels, 2);
    team_.parallel(split.rows * groups * split.channels, [&](int64_t task) {
      const Range some = part(rows, task / (groups * split.channels), split.rows);
      const int64_t group = task / split.channels % groups;
      const Range blocks = part(all_blocks, task % split.channels, split.channels, unit);
      if (some.first == some.last || blocks.first == blocks.last) return;
      Gemm g = {};
      input.set_rows(g, group * channels, some.first, some.last);
      g.b = weight.data + group * group_bytes + blocks.first * block;
      g.blocks = all_blocks - blocks.first;
      g.first_channel = group * of_group + blocks.first * kBlock;
      g.channels = std::min(blocks.last * kBlock, of_group) - blocks.first * kBlock;
      g.epilogue = &e;
      kernels_.gemm(g);
    });
  }

  // Those that so many multiply-adds in 8-byte lanes, or bytes moved, are worth handing out to.
  int64_t threads_for(int64_t work) const { return work > kSmall ? team_.threads() : 1; }

  // Ranges of [0, n), of n things of `work` each.
  template <typename Task>
  void ranges(int64_t n, int64_t work, const Task& task) {
    const int64_t threads = threads_for(n * work), parts = threads == 1 ? 1 : std::clamp<int64_t>(n, 1, 4 * threads);
    team_.parallel(parts, [&](int64_t i) {
      const Range some = part(n, i, parts);
      task(some.first, some.last);
    });
  }

  void depthwise() {
    int64_t images;
    Place x;
    const Window w = window(read_, images, x);
    const Place weight = read_.place();
    Reader::check(weight, depthwise_size(w.kernel_h, w.kernel_w, w.channels));
    const Epilogue e = epilogue(read_, images * w.out_height * w.out_width, w.channels);
    constexpr int64_t kChannels = 64;
    const int64_t lines = images * w.out_height, blocks = round_up(w.channels, kChannels) / kChannels;
    const Split split({lines, lines, 8}, {blocks, blocks, 1}, 1, threads_for(lines * w.out_width * w.channels * 4));
    team_.parallel(split.rows * split.channels, [&](int64_t task) {
      const Range some = part(lines, task / split.channels, split.rows, 4);  // lines of the same rows share what is read
      const Range of = part(w.channels, task % split.channels, split.channels, kChannels);
      if (some.first == some.last || of.first == of.last) return;
      Window some_channels = w;
      some_channels.x += of.first;
      some_channels.channels = of.last - of.first;
      kernels_.depthwise(some_channels, weight.data + depthwise_size(w.kernel_h, w.kernel_w, of.first),
                         from_channel(e, of.first), some.first, some.last);
    });
  }

  // A convolution, and a depthwise one of its result.
  void expansion() {
    int64_t images;
    Place x;
    const Window w = window(read_, images, x);
    const int64_t features = read_.positive(), k = depth_of(w.kernel_h, w.kernel_w * w.channels);
    const Place weight = read_.place();
    Reader::check(weight, packed_size(features, k));
    Epilogue expanded = epilogue_values(read_, 0, features);
    if (expanded.residual) throw Invalid("an expansion has a residual");
    expanded.out_dtype = read_.bytes_dtype();
    Window d = {};
    d.dtype = expanded.out_dtype;
    d.height = w.out_height, d.width = w.out_width, d.channels = d.stride = features;
    geometry(read_, d);
    const Place depthwise_weight = read_.place();
    Reader::check(depthwise_weight, depthwise_size(d.kernel_h, d.kernel_w, features));
    const int64_t lines = images * d.out_height;
    const Epilogue e = epilogue(read_, lines * d.out_width, features);
    if (e.residual) throw Invalid("an expansion has a residual");
    if (lines == 0) return;

    const Input input(w, images, x.room, w.channels, kernels_);
    const Expansion both = {kernels_, input, weight.data, packed_block(k), expanded, d, depthwise_weight.data, e};
    const int64_t blocks = round_up(features, Expansion::kChannels) / Expansion::kChannels;
    const Split split({lines, lines, both.least_lines()}, {blocks, blocks, 1}, 1,
                      threads_for(images * d.height * d.width * k * features / 8));
    team_.parallel(split.rows * split.channels, [&](int64_t task) {
      const Range some = part(lines, task / split.channels, split.rows);
      const Range of = part(blocks, task % split.channels, split.channels);
      if (some.first < some.last && of.first < of.last) both.run(some, of);
    });
  }

  void weight_only_dot() {
    Epilogue e;
    const GroupedDot whole = grouped_dot(read_, e);
    const int64_t rows = whole.rows, features = whole.channels;
    if (rows == 0) return;

    const int64_t blocks = round_up(features, kBlock) / kBlock;
    const int64_t block = lines_of(whole.depth, whole.is_int4) * kBlock, scales = whole.groups() * kBlock;
    constexpr int64_t kUnit = GroupedDot::kMostBlocks;
    const Split split({rows, 256, 64}, {blocks, blocks, kUnit}, 1, threads_for(rows * whole.depth * features / 8));
    team_.parallel(split.rows * split.channels, [&](int64_t task) {
      const Range some = part(rows, task / split.channels, split.rows);
      const Range of = part(blocks, task % split.channels, split.channels, blocks / split.channels < kUnit ? 1 : kUnit);
      if (some.first == some.last || of.first == of.last) return;
      GroupedDot d = whole;
      d.x += some.first * d.x_stride;
      d.weight += of.first * block;
      d.scale += of.first * scales;
      d.rows = some.last - some.first;
      d.first_row = some.first;
      d.first_channel = of.first * kBlock;
      d.channels = std::min(of.last * kBlock, features) - d.first_channel;
      d.scratch = reinterpret_cast<float*>(thread_scratch<1>(d.scratch_size() * 4));
      kernels_.grouped_dot(d);
    });
  }

  void matrix_product() {
    const Product p = product(read_);
    if (p.batches() == 0 || p.rows == 0) return;
    const int64_t work = p.depth / 8 + (p.softmax ? 8 : 0);
    p.run(kernels_, team_, threads_for(p.batches() * p.rows * p.columns * work));
  }

  void elementwise() {
    const int64_t rows = read_.size();
    const Elementwise p = elementwise_fields(read_, rows);
    const Epilogue e = epilogue(read_, rows, p.channels);
    ranges(rows, p.channels, [&](int64_t first, int64_t last) { kernels_.elementwise(p, e, first, last); });
  }

  void max_pool() {
    int64_t images;
    Place x;
    const Window w = window(read_, images, x);
    const Place out = read_.place();
    const int64_t stride = read_.size();
    Reader::check(out, extent(images * w.out_height * w.out_width, stride, w.channels));
    ranges(images * w.out_height, w.out_width * w.channels * 4,
           [&](int64_t first, int64_t last) { kernels_.max_pool(w, out.data, stride, first, last); });
  }

  void sum_pool() {
    int64_t images;
    Place x;
    const Window w = window(read_, images, x);
    const Epilogue e = epilogue(read_, images * w.out_height * w.out_width, w.channels);
    ranges(images * w.out_height, w.out_width * w.channels * 4,
           [&](int64_t first, int64_t last) { kernels_.sum_pool(w, e, first, last); });
  }

  void sum() {
    const int64_t rows = read_.size();
    const Sum p = sum_fields(read_, rows);
    const Epilogue e = epilogue(read_, rows, p.channels);
    ranges(rows, p.terms * p.channels / 4, [&](int64_t first, int64_t last) { kernels_.sum(p, e, first, last); });
  }

  void table() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(read_, rows);
    demand(p.x_dtype != DType::f32 && p.out_dtype != DType::f32);
    const Place entries = read_.place();
    Reader::check(entries, 256);
    ranges(rows, p.cols, [&](int64_t first, int64_t last) { kernels_.table(p, entries.data, first, last); });
  }

  void quantize() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(read_, rows);
    demand(p.x_dtype == DType::f32 && p.out_dtype != DType::f32);
    const int64_t step = read_.number(0, 1);
    const float* multiplier = read_.floats(step ? p.cols : 1);
    ranges(rows, p.cols, [&](int64_t first, int64_t last) { kernels_.quantize(p, multiplier, step, first, last); });
  }

  void dequantize() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(read_, rows);
    demand(p.x_dtype != DType::f32 && p.out_dtype == DType::f32);
    const int64_t step = read_.number(0, 1);
    const float* scale = read_.floats(step ? p.cols : 1);
    ranges(rows, p.cols, [&](int64_t first, int64_t last) { kernels_.dequantize(p, scale, step, first, last); });
  }

  void quantize_rows() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(read_, rows);
    demand(p.x_dtype == DType::f32 && p.out_dtype == DType::s8);
    const Place scales = read_.place();
    Reader::check(scales, rows * 4, DType::f32);
    const float* factor = read_.optional_floats(p.cols);
    const bool is_of_function = read_.number(0, 1);
    const Function f = is_of_function ? function_fields(read_) : Function{};
    ranges(rows, p.cols * (is_of_function ? 12 : 2), [&](int64_t first, int64_t last) {
      auto* made = is_of_function ? reinterpret_cast<float*>(thread_scratch(p.cols * 4)) : nullptr;
      auto* to = reinterpret_cast<float*>(scales.data);
      kernels_.quantize_rows(p, factor, is_of_function ? &f : nullptr, made, to, first, last);
    });
  }

  void function() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(read_, rows);
    demand(p.x_dtype == DType::f32 && p.out_dtype == DType::f32);
    const Function f = function_fields(read_);
    ranges(rows, p.cols * 10, [&](int64_t first, int64_t last) { kernels_.function(p, f, first, last); });
  }

  void softmax() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(read_, rows);
    demand(p.x_dtype == DType::f32);
    const float multiplier = *read_.floats(1);
    ranges(rows, p.cols * 8, [&](int64_t first, int64_t last) { kernels_.softmax(p, multiplier, first, last); });
  }

  void layer_norm() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(read_, rows);
    demand(p.x_dtype == DType::f32);
    const Norm norm = norm_fields(read_, rows, p.cols);
    ranges(rows, p.cols * 4, [&](int64_t first, int64_t last) { kernels_.layer_norm(p, norm, first, last); });
  }

  void add_rows() {
    const int64_t rows = read_.size();
    const RowSum s = row_sum(read_, rows);
    ranges(rows, s.cols * s.terms, [&](int64_t first, int64_t last) { kernels_.add_rows(s, first, last); });
  }

  void sum_rows() {
    const int64_t rows = read_.size();
    const WeightedSum s = weighted_sum(read_, rows);
    const Split split({rows, rows, 1}, {s.cols, s.cols, 64}, 1, threads_for(rows * s.rows * s.cols));
    team_.parallel(split.rows * split.channels, [&](int64_t task) {
      const Range some = part(rows, task / split.channels, split.rows);
      const Range of = part(s.cols, task % split.channels, split.channels, 64);
      if (of.first < of.last) kernels_.sum_rows(some_columns(s, of), some.first, some.last);
    });
  }

  // Bytes of one value.
  void fill() {
    const int64_t bytes = read_.positive();
    const auto value = static_cast<int>(read_.number(0, 255));
    const Place out = read_.place();
    Reader::check(out, bytes);
    ranges(bytes, 1, [&](int64_t first, int64_t last) {
      std::memset(out.data + first, value, static_cast<size_t>(last - first));
    });
  }

  void copy() {
    const Copy c = copy_fields(read_);
    if (c.is_empty()) return;
    ranges(c.outer(), c.inner() * c.bytes, [&](int64_t first, int64_t last) { c.run(first, last); });
  }

  Reader read_;
  const Kernels& kernels_;
  Team& team_;
};

}  // namespace jaxq
