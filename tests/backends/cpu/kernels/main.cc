// Every kernel of every instruction set that this machine has against its plain definition, on random sizes in buffers
// of exactly their size; and the bytes of exact kernels against those of the other instruction sets.
//
// test_kernels.py says how it is built. It prints "NAME: N passed, N failed" for each, and fails if one did. Arguments:
// names of instruction sets (otherwise: all), a number (the seed), --bench [NAME] (timings, of what contains NAME,
// instead); ROUNDS in the environment.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "machine.h"
#include "tests.h"

namespace jaxq::test {

const Kernels* kernels = nullptr;

namespace {

int passed = 0, failed = 0;

// Of all that kernels wrote whose bytes are defined.
uint64_t digest = 0;

}  // namespace

void check(bool right, const std::string& what) {
  ++(right ? passed : failed);
  if (!right && failed <= 20) std::printf("wrong: %s\n", what.c_str());
}

bool same(const Bytes& expected, const Buffer<uint8_t>& out) {
  for (int64_t i = 0; i < out.size; ++i) digest = (digest ^ out[i]) * 0x100000001B3u;
  return std::memcmp(expected.data(), out.memory, expected.size()) == 0;
}

void in_parts(int64_t n, const std::function<void(int64_t, int64_t)>& run) {
  if (chance(0.6)) return run(0, n);
  for (int64_t first = 0; first < n;) {
    const int64_t last = std::min(n, first + between(1, std::max<int64_t>(1, n)));
    run(first, last);
    first = last;
  }
}

int64_t some_channels() {
  return chance(0.5) ? between(1, 70) : one_of<int64_t>({16, 24, 32, 48, 64, 96, 112, 128, 129, 144, 200});
}

int64_t some_columns() { return chance(0.3) ? between(1, 20) : chance(0.1) ? between(4000, 4300) : between(1, 400); }

namespace {

int run(int argc, char** argv) {
  std::vector<std::string> names;
  const char* timed = "";
  uint64_t seed = 1;
  bool benches = false;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--bench")) {
      benches = true;
      if (i + 1 < argc) timed = argv[++i];
    } else if (std::isdigit(*argv[i])) {
      seed = static_cast<uint64_t>(std::atoll(argv[i]));
    } else {
      names.push_back(argv[i]);
    }
  }
  void (*const tests[])() = {
      test_pack,        test_gemm,       test_gemm,       test_grouped_dot, test_patches,
      test_band,        test_depthwise,  test_depthwise,  test_max_pool,    test_sum_pool,
      test_elementwise, test_sum,        test_table,      test_quantize,    test_dequantize,
      test_softmax,     test_layer_norm, test_function,   test_quantize_rows};
  const char* rounds = std::getenv("ROUNDS");
  uint64_t first_digest = 0;
  bool right = true;
  const auto found = machine_kernels(names);
  if (found.size() < names.size()) {
    std::printf("some of these instruction sets are not here\n");
    return 1;
  }
  for (const Kernels* each : found) {
    kernels = each;
    if (benches) {
      std::printf("%s, peak %.1f GOP/s\n", kernels->name, kernels->peak());
      bench(timed);
      continue;
    }
    generator.seed(seed);
    passed = failed = 0;
    digest = 0xCBF29CE484222325u;
    for (int i = 0; i < (rounds ? std::atoi(rounds) : 200); ++i) {
      for (const auto test : tests) test();
    }
    if (!first_digest) first_digest = digest;
    check(digest == first_digest, std::string(kernels->name) + ": other bytes than the first instruction set's");
    std::printf("%s: %d passed, %d failed, bytes %016llx\n", kernels->name, passed, failed,
                static_cast<unsigned long long>(digest));
    right &= !failed;
  }
  return right ? 0 : 1;
}

}  // namespace
}  // namespace jaxq::test

int main(int argc, char** argv) { return jaxq::test::run(argc, argv); }
