// Timings of kernels.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <functional>
#include <initializer_list>
#include <vector>

#include "grouped_weights.h"
#include "tests.h"

namespace jaxq::test {

namespace {

const char* wanted = "";  // what the names of timings contain

// Of this thread: other programs may share the machine.
double seconds_now() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

void time(const char* name, double operations, const char* unit, const std::function<void()>& run) {
  if (!std::strstr(name, wanted)) return;
  double best = 1e9;
  for (int i = 0; i < 20; ++i) {
    const double start = seconds_now();
    int times = 0;
    double seconds = 0;
    do {
      for (int j = 0; j < 8; ++j) run();
      times += 8;
      seconds = seconds_now() - start;
    } while (seconds < 2e-3);
    best = std::min(best, seconds / times);
  }
  std::printf("%-48s %9.2f us %8.1f %s\n", name, best * 1e6, operations / best / 1e9, unit);
}

struct Plain {
  Plain(int64_t rows, int64_t channels, DType dtype = DType::s8)
      : vectors(static_cast<size_t>(4 * channels)), out(rows * channels * size_of(dtype)) {
    const size_t n = static_cast<size_t>(channels);
    for (size_t c = 0; c < n; ++c) {
      vectors[c] = 0.001f;
      vectors[2 * n + c] = dtype == DType::u8 ? 0.0f : -127.0f;
      vectors[3 * n + c] = 127.0f;
    }
    e = {vectors.data(), vectors.data() + n, vectors.data() + 2 * n, vectors.data() + 3 * n, nullptr, nullptr, nullptr,
         DType::s8,      channels,           1,                      rows,                   1,       0.5f,
         out.memory,     dtype,              channels * size_of(dtype)};
  }
  std::vector<float> vectors;
  Buffer<uint8_t> out;
  Epilogue e;
};

void bench_depthwise(int64_t size, int64_t channels, int64_t kernel, int64_t stride) {
  const int64_t out = (size + stride - 1) / stride;
  const int64_t pad = std::max<int64_t>(0, (out - 1) * stride + kernel - size) / 2;
  Buffer<uint8_t> x(size * size * channels), w(kernel * kernel * channels), packed(depthwise_size(kernel, kernel, channels));
  fill_random(x.bytes(), x.size);
  fill_random(w.bytes(), w.size);
  kernels->pack_depthwise(reinterpret_cast<int8_t*>(w.memory), kernel, kernel, channels, packed.memory);
  const Window window = {x.memory, DType::s8, size, size, channels, channels, kernel, kernel, stride, stride, pad, pad,
                         1,        1,         out,  out};
  Plain p(out * out, channels);
  char name[100];
  std::snprintf(name, sizeof name, "depthwise %dx%d stride %d, %dx%dx%d", static_cast<int>(kernel),
                static_cast<int>(kernel), static_cast<int>(stride), static_cast<int>(size), static_cast<int>(size),
                static_cast<int>(channels));
  time(name, static_cast<double>(2 * out * out * channels * kernel * kernel), "GOP/s",
       [&] { kernels->depthwise(window, packed.memory, p.e, 0, out); });
}

}  // namespace

void bench(const char* part) {
  wanted = part;
  for (auto [size, channels, kernel, stride] : std::initializer_list<std::array<int64_t, 4>>{
           {112, 32, 3, 1}, {112, 96, 3, 2}, {56, 128, 3, 1}, {56, 144, 3, 1}, {56, 144, 5, 2}, {28, 240, 5, 1},
           {28, 256, 5, 1}, {28, 240, 3, 2}, {14, 480, 3, 1}, {14, 480, 5, 1}, {14, 672, 5, 1}, {14, 672, 5, 2},
           {7, 1152, 5, 1}, {7, 1152, 3, 1}, {56, 96, 7, 1}, {14, 384, 7, 1}}) {
    bench_depthwise(size, channels, kernel, stride);
  }
  for (auto [m, n, k] : std::initializer_list<std::array<int64_t, 3>>{
           {3136, 64, 64}, {3136, 256, 64}, {3136, 64, 256}, {12544, 32, 27}, {12544, 16, 32}, {3136, 24, 144}, {784, 240, 40},
           {256, 1024, 1024}, {1, 1024, 1024}}) {
    Buffer<uint8_t> a(m * round_up(k, 64) + 64), b(packed_size(n, k)), w(n * k);
    fill_random(a.bytes(), a.size);
    fill_random(w.bytes(), w.size);
    kernels->pack(reinterpret_cast<int8_t*>(w.memory), k, 1, n, k, b.memory);
    Plain p(m, n);
    kernels->enter();
    for (bool residual : {false, true}) {
      Buffer<uint8_t> r(m * n);
      fill_random(r.bytes(), r.size);
      p.e.residual = residual ? r.memory : nullptr;
      char name[100];
      std::snprintf(name, sizeof name, "gemm %d x %d x %d%s", static_cast<int>(m), static_cast<int>(n),
                    static_cast<int>(k), residual ? ", residual" : "");
      time(name, static_cast<double>(2 * m * n * k), "GOP/s", [&] {
        const int64_t rows = std::max<int64_t>(1, 65536 / k);
        for (int64_t row = 0; row < m; row += rows) {
          const uint8_t* line = a.memory + row * k;
          Gemm g = {};
          g.lines = &line, g.width = g.rows = std::min(rows, m - row), g.lda = k, g.runs = 1, g.run = k;
          g.a_signed = kernels->takes_signed, g.correction = kernels->takes_signed ? 0 : -1;
          g.b = b.memory, g.blocks = (n + kBlock - 1) / kBlock, g.first_row = row, g.channels = n, g.epilogue = &p.e;
          kernels->gemm(g);
        }
      });
    }
    kernels->leave();
  }
  for (const bool is_int4 : {false, true}) {
    const int64_t n = 512, k = 1024;
    const GroupedWeights w(n, k, 128, is_int4);
    for (const int64_t rows : {1, 2, 4, 6, 8, 12, 16, 24, 32, 64, 128}) {
      Buffer<float> x(rows * k), out(rows * n);
      fill_random(x.memory, x.size, 1.0f);
      Epilogue e = {};
      e.residual_dtype = e.out_dtype = DType::f32;
      e.out = out.bytes(), e.out_stride = n * 4;
      GroupedDot d = {};
      d.x = x.bytes(), d.x_stride = k * 4, d.weight = w.packed.memory, d.scale = w.scale.memory;
      d.is_int4 = is_int4, d.depth = k, d.group_size = 128, d.rows = rows, d.channels = n;
      d.lo = -INFINITY, d.hi = INFINITY, d.epilogue = &e;
      Buffer<float> scratch(d.scratch_size());
      d.scratch = scratch.memory;
      char name[100];
      std::snprintf(name, sizeof name, "grouped_dot %s %d x %d x %d", is_int4 ? "int4" : "int8", static_cast<int>(rows),
                    static_cast<int>(n), static_cast<int>(k));
      time(name, static_cast<double>(2 * rows * n * k), "GFLOP/s", [&] { kernels->grouped_dot(d); });
    }
  }
  {
    const int64_t channels = 64, size = 112;
    Buffer<uint8_t> x(size * size * channels), out(56 * 56 * channels);
    fill_random(x.bytes(), x.size);
    const Window window = {x.memory, DType::s8, size, size, channels, channels, 3, 3, 2, 2, 1, 1, 1, 1, 56, 56};
    time("max_pool 3x3 stride 2, 112x112x64", static_cast<double>(x.size + out.size), "GB/s",
         [&] { kernels->max_pool(window, out.memory, channels, 0, 56); });
  }
  {
    const int64_t channels = 256, size = 28;
    Buffer<uint8_t> x(size * size * channels);
    fill_random(x.bytes(), x.size);
    Plain p(size * size, channels);
    const Window window = {x.memory, DType::s8, size, size, channels, channels, 3, 3, 1, 1, 1, 1, 1, 1, size, size};
    time("sum_pool 3x3, 28x28x256", static_cast<double>(2 * x.size), "GB/s",
         [&] { kernels->sum_pool(window, p.e, 0, size); });
  }
  for (auto [terms, channels] : std::initializer_list<std::array<int64_t, 2>>{{49, 2048}, {49, 1280}, {3136, 64}, {12544, 32}}) {
    Buffer<uint8_t> x(terms * channels);
    fill_random(x.bytes(), x.size);
    Plain p(1, channels);
    char name[100];
    std::snprintf(name, sizeof name, "sum of %d rows of %d", static_cast<int>(terms), static_cast<int>(channels));
    time(name, static_cast<double>(x.size), "GB/s", [&] { kernels->sum({x.memory, DType::s8, channels, terms, channels}, p.e, 0, 1); });
  }
  for (int64_t channels : {16, 24, 64, 256, 1024}) {
    const int64_t rows = 200704 / channels;
    Buffer<uint8_t> x(rows * channels), y(rows * channels), table(256);
    fill_random(x.bytes(), x.size);
    fill_random(y.bytes(), y.size);
    fill_random(table.bytes(), 256);
    Plain p(rows, channels);
    p.e.residual = y.memory;
    char name[100];
    std::snprintf(name, sizeof name, "x + y, %d x %d", static_cast<int>(rows), static_cast<int>(channels));
    Elementwise op = {x.memory, DType::s8, channels, nullptr, DType::s8, 0, 1, 1, 1, channels};
    time(name, static_cast<double>(3 * x.size), "GB/s", [&] { kernels->elementwise(op, p.e, 0, rows); });
    p.e.residual = nullptr;
    op = {x.memory, DType::s8, channels, y.memory, DType::s8, channels, rows, 1, 1, channels};
    std::snprintf(name, sizeof name, "x * y (one row), %d x %d", static_cast<int>(rows), static_cast<int>(channels));
    time(name, static_cast<double>(2 * x.size), "GB/s", [&] { kernels->elementwise(op, p.e, 0, rows); });
    op.y = nullptr;
    p.e.table = table.memory;
    std::snprintf(name, sizeof name, "rescale and look up, %d x %d", static_cast<int>(rows), static_cast<int>(channels));
    time(name, static_cast<double>(2 * x.size), "GB/s", [&] { kernels->elementwise(op, p.e, 0, rows); });
  }
  {
    const int64_t n = 224 * 224 * 3;
    Buffer<float> x(n);
    Buffer<uint8_t> q(n), table(256);
    fill_random(x.memory, n, 50.0f);
    fill_random(table.bytes(), 256);
    const float one = 1.0f;
    const Rows rows = {x.bytes(), DType::f32, 12, q.memory, DType::s8, 3, 3};
    time("quantize 224x224x3", static_cast<double>(5 * n), "GB/s", [&] { kernels->quantize(rows, &one, 0, 0, n / 3); });
    const Rows back = {q.memory, DType::s8, 3, x.bytes(), DType::f32, 12, 3};
    time("dequantize 224x224x3", static_cast<double>(5 * n), "GB/s", [&] { kernels->dequantize(back, &one, 0, 0, n / 3); });
    Buffer<uint8_t> out(n);
    const Rows same = {q.memory, DType::s8, 3, out.memory, DType::s8, 3, 3};
    time("table 224x224x3", static_cast<double>(2 * n), "GB/s", [&] { kernels->table(same, table.memory, 0, n / 3); });
  }
  for (DType dtype : {DType::f32, DType::s8}) {
    const char* to = dtype == DType::f32 ? "f32" : "s8";
    Buffer<float> x(1536 * 128), out(1536 * 128), scale(384), bias(384);
    fill_random(x.memory, x.size, 2.0f);
    fill_random(scale.memory, 384, 1.0f);
    fill_random(bias.memory, 384, 1.0f);
    char name[100];
    const Rows rows = {x.bytes(), DType::f32, 512, out.bytes(), dtype, 128 * size_of(dtype), 128};
    std::snprintf(name, sizeof name, "softmax 1536 x 128 to %s", to);
    time(name, 1536 * 128, "G/s", [&] { kernels->softmax(rows, 127.0f, 0, 1536); });
    const Rows wide = {x.bytes(), DType::f32, 1536, out.bytes(), dtype, 384 * size_of(dtype), 384};
    std::snprintf(name, sizeof name, "layer_norm 128 x 384 to %s", to);
    time(name, 128 * 384, "G/s", [&] { kernels->layer_norm(wide, {scale.memory, bias.memory, 1e-6f, true, 30.0f, nullptr, DType::s8, 0}, 0, 128); });
  }
}

}  // namespace jaxq::test
