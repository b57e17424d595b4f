// Weights in groups: as `GroupedWeights` packs levels, and their scales.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "random.h"

namespace jaxq::test {

struct GroupedWeights {
  GroupedWeights(int64_t n, int64_t k, int64_t group_size, bool is_int4)
      : n(n), k(k), group_size(group_size), is_int4(is_int4), levels(static_cast<size_t>(n * k)),
        blocks(round_up(n, kBlock) / kBlock), lines(lines_of(k, is_int4)), groups((k + group_size - 1) / group_size),
        packed(blocks * lines * kBlock), scale(blocks * groups * kBlock) {
    std::memset(packed.memory, 0, static_cast<size_t>(packed.size));
    for (int64_t i = 0; i < scale.size; ++i) scale[i] = uniform(0.001f, 0.1f);
    for (int64_t c = 0; c < n; ++c) {
      for (int64_t i = 0; i < k; ++i) {
        const int level = static_cast<int>(is_int4 ? between(-8, 7) : between(-127, 127));
        levels[static_cast<size_t>(c * k + i)] = level;
        uint8_t& byte = packed[(c / kBlock * lines + (is_int4 ? i / 2 : i)) * kBlock + c % kBlock];
        byte = static_cast<uint8_t>(is_int4 ? byte | (level & 15) << (i % 2 * 4) : level);
      }
    }
  }
  double weight(int64_t c, int64_t i) const {
    const double step = static_cast<double>(scale[(c / kBlock * groups + i / group_size) * kBlock + c % kBlock]);
    return step * levels[static_cast<size_t>(c * k + i)];
  }
  int64_t n, k, group_size;
  bool is_int4;
  std::vector<int> levels;
  int64_t blocks, lines, groups;
  Buffer<uint8_t> packed;
  Buffer<float> scale;
};

}  // namespace jaxq::test
