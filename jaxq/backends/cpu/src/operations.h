// The operations of a region's program: each reads its operands, checks that they lie in their buffers, and hands its
// kernel's work out. A new operation is a number in `run`, its function here, its kernel in kernels.h, and its row in
// jaxq/backends/cpu/program.py.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "arena.h"
#include "expansion.h"
#include "input.h"
#include "kernels.h"
#include "product.h"
#include "program.h"
#include "row_sum_fields.h"
#include "split.h"
#include "team.h"

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
  // `rows` output rows of `channels`.
  Epilogue epilogue(int64_t rows, int64_t channels) {
    Epilogue e = values(rows, channels);
    const Place out = read_.place();
    e.out = out.data;
    e.out_dtype = read_.dtype();
    e.out_stride = read_.size();
    if (e.table && e.out_dtype == DType::f32) throw Invalid("a table has bytes");
    Reader::check(out, extent(rows, e.out_stride, channels * size_of(e.out_dtype)), e.out_dtype);
    return e;
  }

  // What an epilogue reads.
  Epilogue values(int64_t rows, int64_t channels) {
    Epilogue e = {};
    e.multiplier = read_.floats(channels);
    e.bias = read_.floats(channels);
    e.lo = read_.floats(channels);
    e.hi = read_.floats(channels);
    e.row_scale = optional_floats(rows);
    const Place table = read_.place(true);
    if (table) Reader::check(table, 256);
    e.table = table.data;
    const Place residual = read_.place(true);
    e.residual = residual.data;
    e.residual_dtype = read_.dtype();
    e.residual_stride = read_.size();
    e.residual_repeat = read_.positive();
    e.residual_period = read_.positive();
    e.residual_step = read_.number(0, 1);
    e.residual_multiplier = read_.real();
    if (residual) {
      const int64_t seen = std::min((rows + e.residual_repeat - 1) / e.residual_repeat, e.residual_period);
      const int64_t last = (e.residual_step ? channels : 1) * size_of(e.residual_dtype);
      Reader::check(residual, extent(seen, e.residual_stride, last), e.residual_dtype);
    }
    return e;
  }

  // The window's geometry; the number of images comes first.
  Window window(int64_t& images, Place& x) {
    Window w = {};
    images = read_.size();
    x = read_.place();
    w.x = x.data;
    w.dtype = read_.bytes_dtype();
    for (int64_t* size : {&w.height, &w.width, &w.channels, &w.stride}) *size = read_.positive();
    for (int64_t* size : {&w.kernel_h, &w.kernel_w, &w.stride_h, &w.stride_w}) *size = read_.positive();
    for (int64_t* size : {&w.pad_top, &w.pad_left}) *size = read_.size();
    for (int64_t* size : {&w.dilation_h, &w.dilation_w}) *size = read_.positive();
    for (int64_t* size : {&w.out_height, &w.out_width}) *size = read_.positive();
    Reader::check(x, extent(images * w.height * w.width, w.stride, w.channels));
    return w;
  }

  void convolution() {
    int64_t images;
    Place x;
    const Window w = window(images, x);
    const int64_t groups = read_.positive(), features = read_.positive();
    if (w.channels % groups || features % groups) throw Invalid("the groups of a convolution do not divide its channels");
    const int64_t channels = w.channels / groups, of_group = features / groups;
    const int64_t k = depth_of(w.kernel_h, w.kernel_w * channels), block = packed_block(k);
    const int64_t rows = images * w.out_height * w.out_width;
    const Place weight = read_.place();
    const int64_t group_bytes = packed_size(of_group, k);
    Reader::check(weight, extent(groups, group_bytes, group_bytes));
    const Epilogue e = epilogue(rows, features);
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
    const Window w = window(images, x);
    const Place weight = read_.place();
    Reader::check(weight, depthwise_size(w.kernel_h, w.kernel_w, w.channels));
    const Epilogue e = epilogue(images * w.out_height * w.out_width, w.channels);
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
    const Window w = window(images, x);
    const int64_t features = read_.positive(), k = depth_of(w.kernel_h, w.kernel_w * w.channels);
    const Place weight = read_.place();
    Reader::check(weight, packed_size(features, k));
    Epilogue expanded = values(0, features);
    if (expanded.residual) throw Invalid("an expansion has a residual");
    expanded.out_dtype = read_.bytes_dtype();
    Window d = {};
    d.dtype = expanded.out_dtype;
    d.height = w.out_height, d.width = w.out_width, d.channels = d.stride = features;
    for (int64_t* size : {&d.kernel_h, &d.kernel_w, &d.stride_h, &d.stride_w}) *size = read_.positive();
    for (int64_t* size : {&d.pad_top, &d.pad_left}) *size = read_.size();
    for (int64_t* size : {&d.dilation_h, &d.dilation_w}) *size = read_.positive();
    for (int64_t* size : {&d.out_height, &d.out_width}) *size = read_.positive();
    const Place depthwise_weight = read_.place();
    Reader::check(depthwise_weight, depthwise_size(d.kernel_h, d.kernel_w, features));
    const int64_t lines = images * d.out_height;
    const Epilogue e = epilogue(lines * d.out_width, features);
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
    GroupedDot whole = {};
    const int64_t rows = read_.size();
    const Place x = read_.place();
    whole.x = x.data;
    whole.x_stride = read_.size();
    whole.depth = read_.positive();
    whole.is_int4 = read_.number(0, 1);
    whole.group_size = read_.number(2, int64_t{1} << 40);
    if (whole.group_size % 2) throw Invalid("a group begins within a byte");
    const int64_t features = read_.positive();
    Reader::check(x, extent(rows, whole.x_stride, whole.depth * 4), DType::f32);
    const int64_t blocks = round_up(features, kBlock) / kBlock;
    const int64_t block = lines_of(whole.depth, whole.is_int4) * kBlock, scales = whole.groups() * kBlock;
    const Place weight = read_.place(), scale = read_.place();
    Reader::check(weight, extent(blocks, block, block));
    Reader::check(scale, extent(blocks, scales * 4, scales * 4), DType::f32);
    Epilogue e = {};
    e.bias = optional_floats(features);
    whole.lo = read_.real();
    whole.hi = read_.real();
    e.residual_dtype = e.out_dtype = DType::f32;
    const Place residual = read_.place(true);
    e.residual = residual.data;
    e.residual_stride = read_.size();
    e.residual_repeat = read_.positive();
    e.residual_period = read_.positive();
    e.residual_step = read_.number(0, 1);
    if (residual) {
      const int64_t seen = std::min((rows + e.residual_repeat - 1) / e.residual_repeat, e.residual_period);
      Reader::check(residual, extent(seen, e.residual_stride, (e.residual_step ? features : 1) * 4), DType::f32);
    }
    const Place out = read_.place();
    e.out = out.data;
    e.out_stride = read_.size();
    Reader::check(out, extent(rows, e.out_stride, features * 4), DType::f32);
    if (rows == 0) return;

    constexpr int64_t kUnit = GroupedDot::kMostBlocks;
    const Split split({rows, 256, 64}, {blocks, blocks, kUnit}, 1, threads_for(rows * whole.depth * features / 8));
    team_.parallel(split.rows * split.channels, [&](int64_t task) {
      const Range some = part(rows, task / split.channels, split.rows);
      const Range of = part(blocks, task % split.channels, split.channels, blocks / split.channels < kUnit ? 1 : kUnit);
      if (some.first == some.last || of.first == of.last) return;
      GroupedDot d = whole;
      d.x += some.first * d.x_stride;
      d.weight = weight.data + of.first * block;
      d.scale = reinterpret_cast<const float*>(scale.data) + of.first * scales;
      d.rows = some.last - some.first;
      d.first_row = some.first;
      d.first_channel = of.first * kBlock;
      d.channels = std::min(of.last * kBlock, features) - d.first_channel;
      d.epilogue = &e;
      d.scratch = reinterpret_cast<float*>(thread_scratch<1>(d.scratch_size() * 4));
      kernels_.grouped_dot(d);
    });
  }

  void matrix_product() {
    Product p = {};
    for (auto* values : {&p.batch, &p.x_strides, &p.y_strides, &p.out_strides, &p.residual_strides}) {
      for (int64_t& value : *values) value = read_.size();
    }
    p.rows = read_.size(), p.columns = read_.positive(), p.depth = read_.positive();
    const Place x = read_.place();
    p.x = x.data;
    p.x_room = x.room;
    p.x_dtype = read_.bytes_dtype();
    p.x_row = read_.size();
    const Place y = read_.place();
    p.y = y.data;
    p.y_row = read_.size(), p.y_step = read_.size();
    const Epilogue& e = p.epilogue = epilogue(p.rows, p.columns);
    p.softmax = optional_floats(1);
    demand(!p.softmax || !e.table);
    if (p.batches() == 0 || p.rows == 0) return;
    const auto reach = [&](const int64_t* strides) {
      int64_t bytes = 0;
      for (int i = 0; i < Product::kAxes; ++i) bytes += extent(p.batch[i], strides[i], 1) - 1;
      return bytes;
    };
    Reader::check(x, reach(p.x_strides) + extent(p.rows, p.x_row, p.depth));
    Reader::check(y, reach(p.y_strides) + extent(p.columns, p.y_row, 1) - 1 + extent(p.depth, p.y_step, 1));
    check_rest(e.out, reach(p.out_strides) + extent(p.rows, e.out_stride, p.columns * size_of(e.out_dtype)));
    if (e.residual) {
      const int64_t last = (e.residual_step ? p.columns : 1) * size_of(e.residual_dtype);
      const int64_t seen = std::min((p.rows + e.residual_repeat - 1) / e.residual_repeat, e.residual_period);
      check_rest(e.residual, reach(p.residual_strides) + extent(seen, e.residual_stride, last));
    }
    const int64_t work = p.depth / 8 + (p.softmax ? 8 : 0);
    p.run(kernels_, team_, threads_for(p.batches() * p.rows * p.columns * work));
  }

  void check_rest(const uint8_t* data, int64_t bytes) {
    if (!read_.holds(data, bytes)) throw Invalid("a product's rows lie outside of their buffer");
  }

  void elementwise() {
    const int64_t rows = read_.size();
    Elementwise p = {};
    p.channels = read_.positive();
    const Place x = read_.place();
    p.x = x.data;
    p.x_dtype = read_.bytes_dtype();
    p.x_stride = read_.size();
    Reader::check(x, extent(rows, p.x_stride, p.channels));
    const Place y = read_.place(true);
    p.y = y.data;
    p.y_dtype = read_.bytes_dtype();
    p.y_stride = read_.size();
    p.y_repeat = read_.positive();
    p.y_period = read_.positive();
    p.y_step = read_.number(0, 1);
    if (y) {
      const int64_t seen = std::min((rows + p.y_repeat - 1) / p.y_repeat, p.y_period);
      Reader::check(y, extent(seen, p.y_stride, p.y_step ? p.channels : 1));
    }
    const Epilogue e = epilogue(rows, p.channels);
    ranges(rows, p.channels, [&](int64_t first, int64_t last) { kernels_.elementwise(p, e, first, last); });
  }

  void max_pool() {
    int64_t images;
    Place x;
    const Window w = window(images, x);
    const Place out = read_.place();
    const int64_t stride = read_.size();
    Reader::check(out, extent(images * w.out_height * w.out_width, stride, w.channels));
    ranges(images * w.out_height, w.out_width * w.channels * 4,
           [&](int64_t first, int64_t last) { kernels_.max_pool(w, out.data, stride, first, last); });
  }

  void sum_pool() {
    int64_t images;
    Place x;
    const Window w = window(images, x);
    const Epilogue e = epilogue(images * w.out_height * w.out_width, w.channels);
    ranges(images * w.out_height, w.out_width * w.channels * 4,
           [&](int64_t first, int64_t last) { kernels_.sum_pool(w, e, first, last); });
  }

  void sum() {
    const int64_t rows = read_.size();
    Sum p = {};
    p.terms = read_.positive();
    p.channels = read_.positive();
    const Place x = read_.place();
    p.x = x.data;
    p.dtype = read_.bytes_dtype();
    p.stride = read_.size();
    Reader::check(x, extent(rows * p.terms, p.stride, p.channels));
    const Epilogue e = epilogue(rows, p.channels);
    ranges(rows, p.terms * p.channels / 4, [&](int64_t first, int64_t last) { kernels_.sum(p, e, first, last); });
  }

  Rows rows_of(int64_t rows) {
    Rows p = {};
    p.cols = read_.positive();
    const Place x = read_.place();
    p.x = x.data;
    p.x_dtype = read_.dtype();
    p.x_stride = read_.size();
    Reader::check(x, extent(rows, p.x_stride, p.cols * size_of(p.x_dtype)), p.x_dtype);
    const Place out = read_.place();
    p.out = out.data;
    p.out_dtype = read_.dtype();
    p.out_stride = read_.size();
    Reader::check(out, extent(rows, p.out_stride, p.cols * size_of(p.out_dtype)), p.out_dtype);
    return p;
  }

  static void demand(bool holds) {
    if (!holds) throw Invalid("an operation has operands of other dtypes than it takes");
  }

  void table() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(rows);
    demand(p.x_dtype != DType::f32 && p.out_dtype != DType::f32);
    const Place entries = read_.place();
    Reader::check(entries, 256);
    ranges(rows, p.cols, [&](int64_t first, int64_t last) { kernels_.table(p, entries.data, first, last); });
  }

  void quantize() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(rows);
    demand(p.x_dtype == DType::f32 && p.out_dtype != DType::f32);
    const int64_t step = read_.number(0, 1);
    const float* multiplier = read_.floats(step ? p.cols : 1);
    ranges(rows, p.cols, [&](int64_t first, int64_t last) { kernels_.quantize(p, multiplier, step, first, last); });
  }

  void dequantize() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(rows);
    demand(p.x_dtype != DType::f32 && p.out_dtype == DType::f32);
    const int64_t step = read_.number(0, 1);
    const float* scale = read_.floats(step ? p.cols : 1);
    ranges(rows, p.cols, [&](int64_t first, int64_t last) { kernels_.dequantize(p, scale, step, first, last); });
  }

  void quantize_rows() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(rows);
    demand(p.x_dtype == DType::f32 && p.out_dtype == DType::s8);
    const Place scales = read_.place();
    Reader::check(scales, rows * 4, DType::f32);
    const float* factor = optional_floats(p.cols);
    const bool is_of_function = read_.number(0, 1);
    const Function f = is_of_function ? function_fields() : Function{};
    ranges(rows, p.cols * (is_of_function ? 12 : 2), [&](int64_t first, int64_t last) {
      auto* made = is_of_function ? reinterpret_cast<float*>(thread_scratch(p.cols * 4)) : nullptr;
      auto* to = reinterpret_cast<float*>(scales.data);
      kernels_.quantize_rows(p, factor, is_of_function ? &f : nullptr, made, to, first, last);
    });
  }

  void function() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(rows);
    demand(p.x_dtype == DType::f32 && p.out_dtype == DType::f32);
    const Function f = function_fields();
    ranges(rows, p.cols * 10, [&](int64_t first, int64_t last) { kernels_.function(p, f, first, last); });
  }

  Function function_fields() {
    Function f = {};
    f.kind = static_cast<Function::Kind>(read_.number(0, 1));
    for (float* number : {&f.linear, &f.cubic, &f.factor, &f.input_factor}) *number = read_.real();
    return f;
  }

  void softmax() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(rows);
    demand(p.x_dtype == DType::f32);
    const float multiplier = *read_.floats(1);
    ranges(rows, p.cols * 8, [&](int64_t first, int64_t last) { kernels_.softmax(p, multiplier, first, last); });
  }

  void layer_norm() {
    const int64_t rows = read_.size();
    const Rows p = rows_of(rows);
    demand(p.x_dtype == DType::f32);
    Norm norm = {};
    norm.multiplier = *read_.floats(1);
    norm.scale = optional_floats(p.cols);
    norm.bias = optional_floats(p.cols);
    norm.epsilon = read_.real();
    norm.center = read_.number(0, 1);
    const Place bytes = read_.place(true);
    norm.bytes = bytes.data;
    norm.bytes_dtype = read_.bytes_dtype();
    norm.bytes_stride = read_.size();
    if (bytes) Reader::check(bytes, extent(rows, norm.bytes_stride, p.cols));
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

  const float* optional_floats(int64_t n) {
    const Place p = read_.place(true);
    if (p) Reader::check(p, n * 4, DType::f32);
    return reinterpret_cast<const float*>(p.data);
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

  // An array of up to five axes with strides to another; the last axis is of `bytes` that lie together.
  void copy() {
    constexpr int kAxes = 5;
    int64_t sizes[kAxes], from_strides[kAxes], to_strides[kAxes];
    for (auto* values : {&sizes, &from_strides, &to_strides}) {
      for (int64_t& value : *values) value = read_.size();
    }
    const int64_t bytes = read_.positive();
    const Place from = read_.place(), to = read_.place();
    int64_t from_reach = bytes, to_reach = bytes, outer = 1;
    for (int i = 0; i < kAxes; ++i) {
      if (sizes[i] == 0) return;
      from_reach += extent(sizes[i], from_strides[i], 1) - 1;
      to_reach += extent(sizes[i], to_strides[i], 1) - 1;
      if (i + 1 < kAxes) outer *= sizes[i];
    }
    Reader::check(from, from_reach);
    Reader::check(to, to_reach);
    const int64_t inner = sizes[kAxes - 1], from_step = from_strides[kAxes - 1], to_step = to_strides[kAxes - 1];
    ranges(outer, inner * bytes, [&](int64_t first, int64_t last) {
      for (int64_t at = first; at < last; ++at) {
        const uint8_t* f = from.data;
        uint8_t* t = to.data;
        for (int64_t rest = at, i = kAxes - 2; i >= 0; --i) {
          f += rest % sizes[i] * from_strides[i];
          t += rest % sizes[i] * to_strides[i];
          rest /= sizes[i];
        }
        if (bytes == 1) {
          for (int64_t j = 0; j < inner; ++j) t[j * to_step] = f[j * from_step];
        } else {
          for (int64_t j = 0; j < inner; ++j) std::memcpy(t + j * to_step, f + j * from_step, static_cast<size_t>(bytes));
        }
      }
    });
  }

  Reader read_;
  const Kernels& kernels_;
  Team& team_;
};

}  // namespace jaxq
