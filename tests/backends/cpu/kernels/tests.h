// The tests of kernels, and what they share: the kernels under test, and the record of what they did.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "buffer.h"
#include "kernels.h"
#include "random.h"

namespace jaxq::test {

extern const Kernels* kernels;  // under test

void check(bool right, const std::string& what);

// Whether a kernel wrote what is expected, which all instruction sets have to write.
bool same(const Bytes& expected, const Buffer<uint8_t>& out);

// The parts of a range that threads may compute.
void in_parts(int64_t n, const std::function<void(int64_t, int64_t)>& run);

// Mostly sizes about the widths of vectors.
int64_t some_channels();
int64_t some_columns();
inline DType some_bytes() { return one_of({DType::s8, DType::u8}); }

// gemm.cc
void test_pack();
void test_gemm();
// grouped_dot.cc
void test_grouped_dot();
// windows.cc
void test_patches();
void test_band();
void test_depthwise();
void test_max_pool();
void test_sum_pool();
// elementwise.cc
void test_elementwise();
void test_sum();
void test_table();
// quantize.cc
void test_quantize();
void test_dequantize();
void test_function();
void test_quantize_rows();
// norms.cc
void test_softmax();
void test_layer_norm();

// bench.cc: timings of the kernels whose names contain `part`.
void bench(const char* part);

}  // namespace jaxq::test
