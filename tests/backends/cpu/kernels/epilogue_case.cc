#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "epilogue_case.h"
#include "random.h"
#include "reference.h"

namespace jaxq::test {

EpilogueCase::EpilogueCase(int64_t rows, int64_t channels, float largest, bool may_be_by_row)
    : rows(rows),
      channels(channels),
      multiplier(channels),
      bias(channels),
      lo(channels),
      hi(channels),
      row_scale(rows),
      table(256),
      repeat(chance(0.2) ? between(1, 3) : 1),
      period(chance(0.2) ? between(1, std::max<int64_t>(1, (rows + repeat - 1) / repeat)) : (rows + repeat - 1) / repeat),
      step(chance(0.2) ? 0 : 1),
      residual_dtype(one_of({DType::s8, DType::u8, DType::f32})),
      residual_stride(size_of(residual_dtype) * ((step ? channels : 1) + between(0, 1) * between(0, 9))),
      residual(period * residual_stride),
      out_dtype(one_of({DType::s8, DType::s8, DType::u8, DType::u8, DType::f32})),
      out_stride((channels + (chance(0.3) ? between(0, 9) : 0)) * size_of(out_dtype)),
      out(rows * out_stride) {
  const bool has_table = out_dtype != DType::f32 && chance(0.3);
  const bool has_residual = chance(0.4);
  const bool is_signed = has_table || out_dtype == DType::s8;
  const float least = out_dtype == DType::f32 ? -1e30f : is_signed ? -127.0f : 0.0f;
  const float most = out_dtype == DType::f32 ? 1e30f : is_signed ? 127.0f : 255.0f;
  const float scale = (chance(0.1) ? 1e8f : chance(0.5) ? 200.0f : 2000.0f) / largest;
  for (int64_t c = 0; c < channels; ++c) {
    multiplier[c] = scale * uniform(chance(0.1) ? -1.0f : 0.01f, 1.0f);
    if (chance(0.2)) multiplier[c] = std::exp2(std::round(std::log2(std::fabs(multiplier[c]) + 1e-9f)));  // ties
    bias[c] = chance(0.3) ? 0.0f : chance(0.5) ? uniform(-100, 100) : std::round(uniform(-100, 100)) + 0.5f;
    lo[c] = chance(0.5) ? least : is_signed ? std::round(uniform(-127, 0)) : std::round(uniform(0, 20));
    hi[c] = chance(0.5) ? most : std::round(uniform(20, 127));
    if (chance(0.1) && least < 0) lo[c] = 0;
  }
  const bool by_row = may_be_by_row && chance(0.3);
  for (int64_t r = 0; r < rows; ++r) row_scale[r] = chance(0.05) ? 1e36f : std::exp(uniform(-2, 2));
  fill_random(table.bytes(), 256);
  if (residual_dtype == DType::f32) {
    for (int64_t i = 0; i < period * residual_stride / 4; ++i) {
      const float x = uniform(-100, 100);
      std::memcpy(residual.bytes() + i * 4, &x, 4);
    }
  } else {
    fill_random(residual.bytes(), residual.size);
  }
  fill_random(out.bytes(), out.size);
  before.assign(out.memory, out.memory + out.size);
  e = {multiplier.memory,
       bias.memory,
       lo.memory,
       hi.memory,
       by_row ? row_scale.memory : nullptr,
       has_table ? table.memory : nullptr,
       has_residual ? residual.memory : nullptr,
       residual_dtype,
       residual_stride,
       repeat,
       period,
       step,
       uniform(0.01f, 2.0f),
       out.memory,
       out_dtype,
       out_stride};
}

void EpilogueCase::expect(int64_t row, int64_t c, int32_t acc) {
  float y = times(static_cast<float>(acc), multiplier[c]);
  if (e.row_scale) y = std::min(std::max(times(y, row_scale[row]), -FLT_MAX), FLT_MAX);
  y = y + bias[c];
  if (e.residual) {
    const uint8_t* p = e.residual + row / e.residual_repeat % e.residual_period * e.residual_stride;
    p += e.residual_step ? c * size_of(residual_dtype) : 0;
    float x;
    if (residual_dtype == DType::f32) {
      std::memcpy(&x, p, 4);
    } else {
      x = static_cast<float>(value(p, residual_dtype));
    }
    y = y + times(x, e.residual_multiplier);
  }
  y = std::min(std::max(y, lo[c]), hi[c]);
  uint8_t* to = before.data() + row * out_stride + c * size_of(out_dtype);
  if (out_dtype == DType::f32) {
    std::memcpy(to, &y, 4);
  } else {
    *to = byte_of(y, e.table || out_dtype == DType::s8);
    if (e.table) *to = table[*to];
  }
}

std::string EpilogueCase::describe() const {
  return " rows " + std::to_string(rows) + " channels " + std::to_string(channels) + " out " +
         std::to_string(static_cast<int>(out_dtype)) + " residual " +
         (e.residual ? std::to_string(static_cast<int>(residual_dtype)) : "no") + " step " + std::to_string(step) +
         " table " + (e.table ? "yes" : "no") + " by row " + (e.row_scale ? "yes" : "no");
}

}  // namespace jaxq::test
