// The memory that kernels work on, and what fills it.
#pragma once
#include <cstdint>
#include <vector>

#include "random.h"

namespace jaxq::test {

using Bytes = std::vector<uint8_t>;

// A buffer of its size exactly, at an odd address, so that a sanitizer sees what is read or written beyond it.
template <class T>
struct Buffer {
  explicit Buffer(int64_t n) : memory(new T[static_cast<size_t>(n)]), size(n) {}
  ~Buffer() { delete[] memory; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T& operator[](int64_t i) { return memory[i]; }
  const T& operator[](int64_t i) const { return memory[i]; }
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(memory); }
  T* memory;
  int64_t size;
};

inline void fill_random(uint8_t* p, int64_t n) {
  const bool extreme = chance(0.2);
  for (int64_t i = 0; i < n; ++i) {
    p[i] = static_cast<uint8_t>(extreme ? one_of<int>({0x7F, 0x80, 0x81, 0xFF, 0x00}) : between(0, 255));
  }
}

inline void fill_random(float* p, int64_t n, float scale) {
  std::normal_distribution<float> normal(0, scale);
  for (int64_t i = 0; i < n; ++i) p[i] = normal(generator);
}

}  // namespace jaxq::test
