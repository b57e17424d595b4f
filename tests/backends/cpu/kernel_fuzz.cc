// Kernels on descriptions made of arbitrary bytes: all instruction sets of this machine have to write what the generic
// one writes, and nothing else. To be compiled with sanitizers, which see what is read.
//
// With -DJAXQ_LIBFUZZER it is a target of libFuzzer; without, a program of its own that makes up inputs:
// program [inputs, 1000] [seed, 1] prints "N passed, N failed".
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "machine.h"

namespace jaxq {

namespace {

// Numbers from the input, then zeros.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  bool flag() { return byte() & 1; }
  // Small more often than large.
  int64_t number(int64_t lo, int64_t hi) {
    const int64_t range = hi - lo + 1;
    const int64_t value = byte();
    return lo + (range > 256 ? (value < 192 ? value : (value - 192) * 256 + byte()) : value) % range;
  }
  DType bytes_type() { return flag() ? DType::s8 : DType::u8; }
  float real() {
    switch (byte() % 16) {
      case 0: return 0.0f;
      case 1: return -0.0f;
      case 2: return INFINITY;
      case 3: return -INFINITY;
      case 4: return NAN;
      case 5: return 3.4e38f;
      case 6: return -1e-40f;
      case 7: return static_cast<float>(number(-300, 300)) + 0.5f;
      default: return (static_cast<float>(byte()) - 128.0f) * std::ldexp(1.0f, static_cast<int>(byte() % 24) - 16);
    }
  }
  uint64_t seed() {
    uint64_t value = 0;
    for (int i = 0; i < 4; ++i) value = value << 8 | byte();
    return value;
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

// Memory of exactly its size; what the input has no bytes for follows from a few of them.
struct Memory {
  explicit Memory(int64_t size) : size(size), data(new uint8_t[static_cast<size_t>(size)]) {}
  Memory(int64_t size, Input& in) : Memory(size) {
    const int kind = in.byte() % 4;
    std::minstd_rand random(static_cast<unsigned>(in.seed() | 1));
    for (int64_t i = 0; i < size; ++i) {
      const uint8_t x = static_cast<uint8_t>(random() >> 8);
      data[i] = kind == 0 ? (x & 1 ? 0x80 : 0x7F) : kind == 1 ? (x & 1 ? 0xFF : 0x00) : x;
    }
  }
  static Memory floats(int64_t count, Input& in) {
    Memory memory(count * 4);
    for (int64_t i = 0; i < count; ++i) {
      const float x = i < 24 ? in.real() : memory.real(i % 24) * (1 - 0.01f * static_cast<float>(i % 17));
      std::memcpy(memory.data.get() + i * 4, &x, 4);
    }
    return memory;
  }
  float real(int64_t i) const {
    float x;
    std::memcpy(&x, data.get() + i * 4, 4);
    return x;
  }
  const float* floats() const { return reinterpret_cast<const float*>(data.get()); }
  int64_t size;
  std::unique_ptr<uint8_t[]> data;
};

// How alike two outputs have to be.
struct Likeness {
  DType dtype;
  bool exact;
};

bool alike(const Memory& a, const Memory& b, Likeness how) {
  if (how.dtype != DType::f32) {
    for (int64_t i = 0; i < a.size; ++i) {
      const int difference = static_cast<int8_t>(static_cast<uint8_t>(a.data[i] - b.data[i]));
      if (std::abs(difference) > (how.exact ? 0 : 1)) return false;
    }
    return true;
  }
  if (std::memcmp(a.data.get(), b.data.get(), static_cast<size_t>(a.size)) == 0) return true;
  for (int64_t i = 0; i < a.size / 4; ++i) {
    const float x = a.real(i), y = b.real(i);
    if (std::memcmp(&x, &y, 4) == 0 || (std::isnan(x) && std::isnan(y))) continue;
    if (how.exact || !(std::fabs(x - y) <= 1e-5f * std::fabs(x) + 1e-6f)) return false;
  }
  return true;
}

// Runs a kernel for all instruction sets, on outputs of the same content before.
template <class Run>
bool agree(int64_t size, Likeness how, Input& in, const Run& run) {
  static const std::vector<const Kernels*> all = machine_kernels();
  const Kernels* const generic = all.back();
  const Memory before(size, in);
  const auto result = [&](const Kernels& kernels) {
    Memory out(size);
    std::memcpy(out.data.get(), before.data.get(), static_cast<size_t>(size));
    kernels.enter();
    run(kernels, out.data.get());
    kernels.leave();
    return out;
  };
  const Memory expected = result(*generic);
  bool right = true;
  for (const Kernels* kernels : all) {
    if (kernels == generic || alike(expected, result(*kernels), how)) continue;
    std::printf("wrong: %s\n", kernels->name);
    right = false;
  }
  return right;
}

struct Finish {
  Finish(int64_t rows, int64_t channels, Input& in)
      : multiplier(Memory::floats(channels, in)), bias(Memory::floats(channels, in)), lo(channels * 4), hi(channels * 4),
        table(256, in), residual(0) {
    e.out_dtype = in.byte() % 3 == 0 ? DType::f32 : in.bytes_type();
    const bool looks_up = e.out_dtype != DType::f32 && in.flag();
    e.table = looks_up ? table.data.get() : nullptr;
    const bool is_signed = looks_up || e.out_dtype == DType::s8;
    for (int64_t c = 0; c < channels; ++c) {
      float least = static_cast<float>(is_signed ? in.number(-127, 127) : in.number(0, 255));
      float most = static_cast<float>(is_signed ? in.number(-127, 127) : in.number(0, 255));
      if (least > most) std::swap(least, most);
      std::memcpy(lo.data.get() + c * 4, &least, 4);
      std::memcpy(hi.data.get() + c * 4, &most, 4);
    }
    e.multiplier = multiplier.floats();
    e.bias = bias.floats();
    e.lo = lo.floats();
    e.hi = hi.floats();
    e.residual_repeat = in.number(1, 4);
    e.residual_period = in.number(1, 5);
    e.residual_step = in.flag();
    e.residual_dtype = in.byte() % 3 == 0 ? DType::f32 : in.bytes_type();
    e.residual_multiplier = in.real();
    e.residual_stride = ((e.residual_step ? channels : 1) + in.number(0, 3)) * size_of(e.residual_dtype);
    const int64_t residual_rows = std::min(e.residual_period, (rows + e.residual_repeat - 1) / e.residual_repeat);
    const int64_t values = std::max<int64_t>(0, residual_rows - 1) * e.residual_stride / size_of(e.residual_dtype) +
                           (e.residual_step ? channels : 1);
    residual = e.residual_dtype == DType::f32 ? Memory::floats(values, in) : Memory(values, in);
    e.residual = in.flag() ? residual.data.get() : nullptr;
    e.out_stride = (channels + in.number(0, 5)) * size_of(e.out_dtype);
    size = rows ? (rows - 1) * e.out_stride + channels * size_of(e.out_dtype) : 0;
  }
  Epilogue to(uint8_t* out) const {
    Epilogue to_here = e;
    to_here.out = out;
    return to_here;
  }
  Memory multiplier, bias, lo, hi, table, residual;
  Epilogue e = {};
  int64_t size;
};

int64_t channels_of(Input& in) { return in.number(1, 150); }

bool fuzz_gemm(Input& in) {
  const int64_t rows = in.number(0, 40), n = channels_of(in), k = in.number(1, 300), lda = k + in.number(0, 20);
  const DType dtype = in.bytes_type();
  const Memory w(n * k, in), a(rows ? (rows - 1) * lda + round_up(k, kDepth) : 0, in);
  const Finish finish(rows, n, in);
  const bool turned = in.flag();
  const int64_t begin = in.number(0, (n - 1) / kBlock) * kBlock;
  return agree(finish.size, {finish.e.out_dtype, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    Memory packed(packed_size(n, k)), flipped(a.size);
    kernels.pack(reinterpret_cast<const int8_t*>(w.data.get()), turned ? 1 : k, turned ? n : 1, n, k, packed.data.get());
    const bool is_signed = dtype == DType::s8, takes = is_signed ? kernels.takes_signed : kernels.takes_unsigned;
    for (int64_t i = 0; i < a.size; ++i) flipped.data[i] = a.data[i] ^ (takes ? 0 : 0x80);
    const Epilogue e = finish.to(out);
    const uint8_t* line = flipped.data.get();
    Gemm g = {};
    g.lines = &line, g.width = rows, g.lda = lda, g.runs = 1, g.run = k;
    g.a_signed = is_signed == takes, g.correction = takes ? 0 : is_signed ? -1 : 1;
    g.b = packed.data.get() + begin / kBlock * packed_block(k), g.blocks = (n - begin + kBlock - 1) / kBlock;
    g.rows = rows, g.first_channel = begin, g.channels = n - begin, g.epilogue = &e;
    kernels.gemm(g);
  });
}

struct Image {
  Image(Input& in, bool pool) : x(0) {
    w.dtype = in.bytes_type();
    w.channels = channels_of(in);
    w.stride = w.channels + in.number(0, 9);
    w.height = in.number(1, 12);
    w.width = in.number(1, 40);
    w.kernel_h = in.number(1, in.byte() % 32 ? 6 : 70);
    w.kernel_w = in.number(1, in.byte() % 32 ? 6 : 70);
    w.stride_h = in.number(1, 4);
    w.stride_w = in.number(1, 4);
    w.dilation_h = in.number(1, 4);
    w.dilation_w = in.number(1, 4);
    // Each window of a pool has a tap within the image: less padding than a tap reaches, and no window that starts
    // beyond; or, where taps are far apart, no padding.
    w.pad_top = padding(in, w.kernel_h, w.dilation_h, w.height, pool);
    w.pad_left = padding(in, w.kernel_w, w.dilation_w, w.width, pool);
    w.out_height = size(in, w.height + w.pad_top, w.stride_h, pool);
    w.out_width = size(in, w.width + w.pad_left, w.stride_w, pool);
    images = in.number(1, 2);
    x = Memory((images * w.height * w.width - 1) * w.stride + w.channels, in);
    w.x = x.data.get();
    first = in.number(0, images * w.out_height);
    last = in.number(first, images * w.out_height);
  }
  static int64_t padding(Input& in, int64_t kernel, int64_t dilation, int64_t size, bool pool) {
    if (pool && dilation > size) return 0;
    return in.number(0, pool ? (kernel - 1) * dilation : kernel * dilation + 3);
  }
  static int64_t size(Input& in, int64_t padded, int64_t stride, bool pool) {
    return in.number(1, (padded - 1) / stride + 1 + (pool ? 0 : 2));
  }
  int64_t rows() const { return images * w.out_height * w.out_width; }
  Window w = {};
  int64_t images, first, last;
  Memory x;
};

bool fuzz_patches(Input& in) {
  const Image image(in, false);
  const int64_t skipped = in.number(0, image.w.channels - 1), channels = in.number(1, image.w.channels - skipped);
  const int64_t k = depth_of(image.w.kernel_h, image.w.kernel_w * channels), lda = k + in.number(0, 9);
  const int64_t first = in.number(0, image.rows()), last = std::min(image.rows(), first + in.number(0, 30));
  const uint8_t flip = in.byte();
  return agree(last > first ? (last - first - 1) * lda + k : 0, {DType::u8, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    kernels.patches({&image.w, skipped, channels, flip, out, lda}, first, last);
  });
}

bool fuzz_band(Input& in) {
  const Image image(in, false);
  const int64_t skipped = in.number(0, image.w.channels - 1), channels = in.number(1, image.w.channels - skipped);
  const int64_t left = in.number(0, 9) - 5, columns = in.number(1, image.w.width + 9);
  const int64_t first = in.number(0, image.w.height + 5) - 5, last = first + in.number(0, image.w.height + 5);
  const int64_t number = in.number(0, image.images - 1);
  const uint8_t flip = in.byte();
  return agree((last - first) * columns * channels, {DType::u8, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    kernels.band({&image.w, skipped, channels, flip, out, left, columns}, number, first, last);
  });
}

bool fuzz_depthwise(Input& in) {
  const Image image(in, false);
  const Window& w = image.w;
  const Memory weight(w.kernel_h * w.kernel_w * w.channels, in);
  const Finish finish(image.rows(), w.channels, in);
  return agree(finish.size, {finish.e.out_dtype, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    Memory packed(depthwise_size(w.kernel_h, w.kernel_w, w.channels));
    kernels.pack_depthwise(reinterpret_cast<const int8_t*>(weight.data.get()), w.kernel_h, w.kernel_w, w.channels,
                           packed.data.get());
    kernels.depthwise(w, packed.data.get(), finish.to(out), image.first, image.last);
  });
}

bool fuzz_max_pool(Input& in) {
  const Image image(in, true);
  const int64_t stride = image.w.channels + in.number(0, 9);
  return agree((image.rows() - 1) * stride + image.w.channels, {DType::u8, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    kernels.max_pool(image.w, out, stride, image.first, image.last);
  });
}

bool fuzz_sum_pool(Input& in) {
  const Image image(in, true);
  const Finish finish(image.rows(), image.w.channels, in);
  return agree(finish.size, {finish.e.out_dtype, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    kernels.sum_pool(image.w, finish.to(out), image.first, image.last);
  });
}

bool fuzz_elementwise(Input& in) {
  const int64_t rows = in.number(0, 70), channels = channels_of(in), first = in.number(0, rows), last = in.number(first, rows);
  Elementwise op = {};
  op.channels = channels;
  op.x_dtype = in.bytes_type();
  op.x_stride = channels + in.number(0, 5);
  op.y_dtype = in.bytes_type();
  op.y_step = in.flag();
  op.y_stride = (op.y_step ? channels : 1) + in.number(0, 5);
  op.y_repeat = in.number(1, 4);
  op.y_period = in.number(1, 6);
  const Memory x(rows ? (rows - 1) * op.x_stride + channels : 0, in);
  const int64_t y_rows = std::min(op.y_period, (rows + op.y_repeat - 1) / op.y_repeat);
  const Memory y(y_rows ? (y_rows - 1) * op.y_stride + (op.y_step ? channels : 1) : 0, in);
  op.x = x.data.get();
  op.y = in.flag() ? y.data.get() : nullptr;
  const Finish finish(rows, channels, in);
  return agree(finish.size, {finish.e.out_dtype, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    kernels.elementwise(op, finish.to(out), first, last);
  });
}

bool fuzz_sum(Input& in) {
  const int64_t rows = in.number(1, 5), terms = in.number(1, 300), channels = channels_of(in);
  const int64_t first = in.number(0, rows), last = in.number(first, rows), stride = channels + in.number(0, 5);
  const DType dtype = in.bytes_type();
  const Memory x((rows * terms - 1) * stride + channels, in);
  const Finish finish(rows, channels, in);
  return agree(finish.size, {finish.e.out_dtype, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    kernels.sum({x.data.get(), dtype, stride, terms, channels}, finish.to(out), first, last);
  });
}

struct Lines {
  Lines(DType from, DType to, Input& in, int64_t most) : x(0) {
    rows = in.number(1, 5);
    r.cols = in.number(1, most);
    r.x_dtype = from;
    r.out_dtype = to;
    r.x_stride = (r.cols + (in.flag() ? in.number(0, 5) : 0)) * size_of(from);
    r.out_stride = (r.cols + (in.flag() ? in.number(0, 5) : 0)) * size_of(to);
    const int64_t values = (rows - 1) * r.x_stride / size_of(from) + r.cols;
    x = from == DType::f32 ? Memory::floats(values, in) : Memory(values, in);
    r.x = x.data.get();
    first = in.number(0, rows);
    last = in.number(first, rows);
  }
  int64_t size() const { return (rows - 1) * r.out_stride + r.cols * size_of(r.out_dtype); }
  Rows to(uint8_t* out) const {
    Rows here = r;
    here.out = out;
    return here;
  }
  bool tame() const {
    for (int64_t i = 0; i < x.size / 4; ++i) {
      if (!(std::fabs(x.real(i)) < 1e4f)) return false;
    }
    return true;
  }
  Rows r = {};
  int64_t rows, first, last;
  Memory x;
};

bool fuzz_table(Input& in) {
  const Lines lines(DType::u8, DType::u8, in, 300);
  const Memory table(256, in);
  return agree(lines.size(), {DType::u8, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    kernels.table(lines.to(out), table.data.get(), lines.first, lines.last);
  });
}

bool fuzz_quantize(Input& in) {
  const DType to = in.bytes_type();
  const Lines lines(DType::f32, to, in, 300);
  const int64_t step = in.flag();
  const Memory multiplier = Memory::floats(step ? lines.r.cols : 1, in);
  return agree(lines.size(), {to, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    kernels.quantize(lines.to(out), multiplier.floats(), step, lines.first, lines.last);
  });
}

bool fuzz_dequantize(Input& in) {
  const Lines lines(in.bytes_type(), DType::f32, in, 300);
  const int64_t step = in.flag();
  const Memory scale = Memory::floats(step ? lines.r.cols : 1, in);
  return agree(lines.size(), {DType::f32, true}, in, [&](const Kernels& kernels, uint8_t* out) {
    kernels.dequantize(lines.to(out), scale.floats(), step, lines.first, lines.last);
  });
}

DType any_type(Input& in) { return in.flag() ? DType::f32 : in.bytes_type(); }

bool fuzz_softmax(Input& in) {
  const Lines lines(DType::f32, any_type(in), in, 5000);
  const bool right = agree(lines.size(), {lines.r.out_dtype, false}, in, [&](const Kernels& kernels, uint8_t* out) {
    kernels.softmax(lines.to(out), 255.0f, lines.first, lines.last);
  });
  return right || !lines.tame();
}

bool fuzz_layer_norm(Input& in) {
  const Lines lines(DType::f32, any_type(in), in, 1500);
  const Memory scale = Memory::floats(lines.r.cols, in), bias = Memory::floats(lines.r.cols, in);
  const bool scales = in.flag(), biases = in.flag(), center = in.flag();
  const bool right = agree(lines.size(), {lines.r.out_dtype, false}, in, [&](const Kernels& kernels, uint8_t* out) {
    const float *a = scales ? scale.floats() : nullptr, *b = biases ? bias.floats() : nullptr;
    kernels.layer_norm(lines.to(out), {a, b, 1e-3f, center, 10.0f, nullptr, DType::s8, 0}, lines.first, lines.last);
  });
  return right || !lines.tame() || scales || biases || lines.r.out_dtype == DType::f32;  // differences of large values
}

constexpr bool (*kFuzzed[])(Input&) = {fuzz_gemm, fuzz_patches, fuzz_band, fuzz_depthwise, fuzz_max_pool,   fuzz_sum_pool,
                                       fuzz_elementwise, fuzz_sum,  fuzz_table,     fuzz_quantize,   fuzz_dequantize,
                                       fuzz_softmax,  fuzz_layer_norm};

constexpr int kKinds = sizeof kFuzzed / sizeof *kFuzzed;

bool one(const uint8_t* data, size_t size) {
  Input in(data, size);
  return kFuzzed[in.byte() % kKinds](in);
}

}  // namespace
}  // namespace jaxq

#ifdef JAXQ_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (!jaxq::one(data, size)) std::abort();
  return 0;
}
#else
int main(int argc, char** argv) {
  const int inputs = argc > 1 ? std::atoi(argv[1]) : 1000;
  std::mt19937_64 random(argc > 2 ? static_cast<uint64_t>(std::atoll(argv[2])) : 1);
  int passed = 0, failed = 0;
  for (int i = 0; i < inputs; ++i) {
    std::vector<uint8_t> data(random() % 400);
    for (uint8_t& x : data) x = static_cast<uint8_t>(random());
    if (!data.empty()) data[0] = static_cast<uint8_t>(i);
    const bool right = jaxq::one(data.data(), data.size());
    ++(right ? passed : failed);
    if (!right && failed <= 20) std::printf("input %d of kernel %d\n", i, data.empty() ? 0 : data[0] % jaxq::kKinds);
  }
  std::printf("fuzz: %d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
#endif
