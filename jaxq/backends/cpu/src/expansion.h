// A convolution and the depthwise one that alone reads it, in one go: of an inverted residual the expansion and what
// follows it. Some lines of the first at a time come to a thread's scratch, where the second finds them in its caches;
// lines that the next ones need, too, are moved to the front.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "arena.h"
#include "input.h"
#include "kernels.h"
#include "split.h"

namespace jaxq {

// The part of an epilogue from that channel on.
inline Epilogue from_channel(Epilogue e, int64_t channel) {
  for (const float** values : {&e.multiplier, &e.bias, &e.lo, &e.hi}) *values += channel;
  e.out += channel * size_of(e.out_dtype);
  if (e.residual && e.residual_step) e.residual += channel * size_of(e.residual_dtype);
  return e;
}

struct Expansion {
  static constexpr int64_t kChannels = 64;       // of one block of packed depthwise weights
  static constexpr int64_t kScratch = 256 << 10;  // bytes that stay in a core's second-level cache beside all else

  const Kernels& kernels;
  const Input& input;
  const uint8_t* weight;
  int64_t block;      // bytes of 16 channels of it
  Epilogue expanded;  // without `out`
  Window window;      // of the depthwise convolution, without `x`; its pixels are dense
  const uint8_t* depthwise_weight;
  Epilogue out;

  // Lines of the output that a part of an image has at least: an eighth of its expansion at most is computed for the part
  // before, too.
  int64_t least_lines() const { return std::max<int64_t>(8 * (span() - window.stride_h) / window.stride_h, 1); }

  // Lines of the output, counted over all images, of some blocks of channels.
  void run(Range lines, Range blocks) const {
    const int64_t first = blocks.first * kChannels, channels = std::min(blocks.last * kChannels, window.channels) - first;
    const int64_t line_bytes = window.width * channels;
    const int64_t fit = std::max<int64_t>(kScratch / line_bytes - span(), 0) / window.stride_h + 1;
    const int64_t band = fit < 4 ? fit : fit / 4 * 4;  // lines of the same rows share what is read
    uint8_t* const scratch = thread_scratch<2>(((band - 1) * window.stride_h + span()) * line_bytes);
    Window w = window;
    w.x = scratch;
    w.channels = w.stride = channels;
    const Epilogue e = from_channel(out, first);
    int64_t begin = 0, end = 0, of = -1;  // the lines that the scratch holds, and of which image
    for (int64_t line = lines.first; line < lines.last; line += w.out_height) {
      const int64_t image = line / window.out_height, y = line % window.out_height;
      w.out_height = std::min({band, window.out_height - y, lines.last - line});
      const int64_t top = y * w.stride_h - window.pad_top, bottom = top + (w.out_height - 1) * w.stride_h + span();
      const int64_t from = std::clamp<int64_t>(top, 0, window.height), to = std::clamp(bottom, from, window.height);
      const int64_t known = of == image ? std::clamp(end, from, to) : from;
      if (known > from) std::memmove(scratch, scratch + (from - begin) * line_bytes, static_cast<size_t>((known - from) * line_bytes));
      expand(image * window.height + known, to - known, first, channels, scratch + (known - from) * line_bytes);
      begin = from, end = to, of = image;
      w.height = to - from;
      w.pad_top = from - top;
      Epilogue some = e;
      some.out += line * w.out_width * e.out_stride;
      kernels.depthwise(w, depthwise_weight + depthwise_size(w.kernel_h, w.kernel_w, first), some, 0, w.out_height);
    }
  }

 private:
  // Lines that a kernel of the depthwise convolution reaches over.
  int64_t span() const { return (window.kernel_h - 1) * window.dilation_h + 1; }

  void expand(int64_t line, int64_t lines, int64_t first, int64_t channels, uint8_t* to) const {
    if (lines == 0) return;
    Epilogue e = expanded;
    e.out = to;
    e.out_stride = channels;
    for (const float** values : {&e.multiplier, &e.bias, &e.lo, &e.hi}) *values += first;
    Gemm g = {};
    input.set_rows(g, 0, line * window.width, (line + lines) * window.width);
    g.b = weight + first / kBlock * block;
    g.blocks = round_up(channels, kBlock) / kBlock;
    g.first_row = 0;
    g.channels = channels;
    g.epilogue = &e;
    kernels.gemm(g);
  }
};

}  // namespace jaxq
