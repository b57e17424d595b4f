// The fields of a window over images, read and checked.
#pragma once
#include <cstdint>

#include "kernels.h"
#include "program.h"

namespace jaxq {

// What is the window's own: all but the image.
inline void geometry(Reader& read, Window& w) {
  for (int64_t* size : {&w.kernel_h, &w.kernel_w, &w.stride_h, &w.stride_w}) *size = read.positive();
  for (int64_t* size : {&w.pad_top, &w.pad_left}) *size = read.size();
  for (int64_t* size : {&w.dilation_h, &w.dilation_w}) *size = read.positive();
  for (int64_t* size : {&w.out_height, &w.out_width}) *size = read.positive();
}

// The number of images comes first.
inline Window window(Reader& read, int64_t& images, Reader::Place& x) {
  Window w = {};
  images = read.size();
  x = read.place();
  w.x = x.data;
  w.dtype = read.bytes_dtype();
  for (int64_t* size : {&w.height, &w.width, &w.channels, &w.stride}) *size = read.positive();
  geometry(read, w);
  Reader::check(x, extent(images * w.height * w.width, w.stride, w.channels));
  return w;
}

}  // namespace jaxq
