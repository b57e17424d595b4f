// A convolution's input as rows of the matrix product: where it lies, or a copy of its pixels with the padding around them,
// or, where a line of the kernel has gaps or the instruction set takes no runs, a copy of every patch.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "arena.h"
#include "kernels.h"

namespace jaxq {

class Input {
 public:
  // Of `channels` channels of the window; `room`: bytes from its first pixel to its buffer's end.
  Input(Window window, int64_t images, int64_t room, int64_t channels, const Kernels& kernels)
      : w_(joined(window, images)), room_(room), channels_(channels), run_(w_.kernel_w * channels), kernels_(kernels) {
    const bool is_signed = w_.dtype == DType::s8;
    native_ = is_signed ? kernels.takes_signed : kernels.takes_unsigned;
    a_signed_ = native_ == is_signed;
    correction_ = native_ ? 0 : is_signed ? -1 : 1;
    has_runs_ = kernels.takes_runs && w_.dilation_w == 1;
    const bool padded = w_.pad_top || w_.pad_left || (w_.out_height - 1) * w_.stride_h + height_of_kernel() > w_.height ||
                        (w_.out_width - 1) * w_.stride_w + w_.kernel_w > w_.width;
    const bool one_run = w_.kernel_h * w_.kernel_w == 1 && w_.height == 1;
    const bool together = w_.kernel_w == 1 || w_.stride == channels;  // a run is one piece of memory
    in_place_ = native_ && !padded && (kernels.takes_runs ? has_runs_ && together : one_run);
  }

  // Bytes that a row of the product takes in the caches.
  int64_t bytes_of_row() const { return has_runs_ ? w_.stride_w * w_.stride_h * channels_ : depth_of(w_.kernel_h, run_); }

  // Sets the rows of the product: output pixels [first, last), counted over all images, of the channels from
  // `first_channel` on. Valid until the thread asks for others; what it asked for last is not copied again.
  void set_rows(Gemm& g, int64_t first_channel, int64_t first, int64_t last) const {
    thread_local Found found;
    if (found.input != number_ || found.first_channel != first_channel || found.first != first || found.last != last) {
      found.input = number_;
      found.first_channel = first_channel;
      found.first = first;
      found.last = last;
      find(found, first_channel, first, last);
    }
    g.lines = found.lines.data();
    g.width = found.width;
    g.column = found.column;
    g.lda = found.lda;
    g.runs = found.runs;
    g.run = found.run;
    g.step = found.step;
    g.a_signed = a_signed_;
    g.correction = correction_;
    g.first_row = first;
    g.rows = last - first;
  }

 private:
  // Rows of a product, as in Gemm, and whose they are.
  struct Found {
    uint64_t input = 0;
    int64_t first_channel, first, last;
    std::vector<const uint8_t*> lines;
    int64_t width, column, lda, runs, run, step;
  };

  static uint64_t next_number() {
    static std::atomic<uint64_t> count{0};
    return ++count;
  }

  void find(Found& f, int64_t first_channel, int64_t first, int64_t last) const {
    f.lines.clear();
    f.width = w_.out_width;
    f.column = first % w_.out_width;
    f.lda = w_.stride_w * w_.stride;
    f.runs = w_.kernel_h;
    f.run = run_;
    f.step = w_.dilation_h * w_.width * w_.stride;
    if (in_place_ && end_of(first_channel, last - 1) <= room_) {
      for (int64_t line = first / w_.out_width; line <= (last - 1) / w_.out_width; ++line) {
        f.lines.push_back(w_.x + at(line, 0) + first_channel);
      }
    } else if (has_runs_) {
      copy_pixels(f, first_channel, first, last);
    } else {
      copy_patches(f, first_channel, first, last);
    }
  }

  // Pixels that lie as the outputs do are one line.
  static Window joined(Window w, int64_t images) {
    const bool pointwise = w.kernel_h * w.kernel_w * w.stride_h * w.stride_w == 1 && !w.pad_top && !w.pad_left;
    if (!pointwise || w.out_height != w.height || w.out_width != w.width) return w;
    w.width = w.out_width = images * w.height * w.width;
    w.height = w.out_height = 1;
    return w;
  }

  int64_t height_of_kernel() const { return (w_.kernel_h - 1) * w_.dilation_h + 1; }

  // Bytes from the first pixel to that of an output without padding.
  int64_t at(int64_t line, int64_t column) const {
    const int64_t image = line / w_.out_height, y = line % w_.out_height * w_.stride_h;
    return ((image * w_.height + y) * w_.width + column * w_.stride_w) * w_.stride;
  }

  // Where the last run of an output pixel is read to.
  int64_t end_of(int64_t first_channel, int64_t pixel) const {
    const int64_t last_run = (w_.kernel_h - 1) * w_.dilation_h * w_.width * w_.stride;
    return at(pixel / w_.out_width, pixel % w_.out_width) + last_run + first_channel + round_up(run_, unit());
  }
  int64_t unit() const { return kernels_.takes_runs ? 4 : kDepth; }
  uint8_t flip() const { return native_ ? 0 : 0x80; }

  void copy_pixels(Found& f, int64_t first_channel, int64_t first, int64_t last) const {
    const int64_t first_line = first / w_.out_width, last_line = (last - 1) / w_.out_width;
    int64_t first_column = 0, columns = w_.out_width;
    if (first_line == last_line) {
      first_column = first % w_.out_width;
      columns = last - first;
      f.column = 0;
    }
    const int64_t pixels = (columns - 1) * w_.stride_w + w_.kernel_w, pitch = pixels * channels_;
    const int64_t most_images = last_line / w_.out_height - first_line / w_.out_height + 1;
    const int64_t most_lines = (last_line - first_line) * w_.stride_h + most_images * height_of_kernel();
    uint8_t* out = thread_scratch(most_lines * pitch + kDepth);
    for (int64_t line = first_line; line <= last_line;) {
      const int64_t image = line / w_.out_height, y = line % w_.out_height;
      const int64_t count = std::min(w_.out_height - y, last_line + 1 - line);
      const int64_t top = y * w_.stride_h - w_.pad_top, height = (count - 1) * w_.stride_h + height_of_kernel();
      const int64_t left = first_column * w_.stride_w - w_.pad_left;
      kernels_.band({&w_, first_channel, channels_, flip(), out, left, pixels}, image, top, top + height);
      for (int64_t i = 0; i < count; ++i) f.lines.push_back(out + i * w_.stride_h * pitch);
      out += height * pitch;
      line += count;
    }
    f.lda = w_.stride_w * channels_;
    f.step = w_.dilation_h * pitch;
  }

  void copy_patches(Found& f, int64_t first_channel, int64_t first, int64_t last) const {
    f.run = depth_of(w_.kernel_h, run_);
    f.runs = 1;
    f.lda = round_up(f.run, kDepth);
    f.width = last - first;
    f.column = 0;
    uint8_t* out = thread_scratch((last - first) * f.lda);
    kernels_.patches({&w_, first_channel, channels_, flip(), out, f.lda}, first, last);
    f.lines.push_back(out);
  }

  Window w_;
  int64_t room_, channels_, run_;
  const Kernels& kernels_;
  bool native_, a_signed_, has_runs_, in_place_;
  int correction_;
  const uint64_t number_ = next_number();  // among all inputs
};

}  // namespace jaxq
