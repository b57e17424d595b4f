// The kernels over the vectors of one instruction set, JAXQ_ISA, whose simd_*.h is included before this file, and their
// table, jaxq::JAXQ_ISA::kKernels.
//
// Nothing of the standard library's inline code may come in: the linker keeps one copy of it for the whole library, and
// that copy could have instructions that not every machine knows. JAXQ_OWN_GEMM: the file has defined its own gemm().
#pragma once

// The order matters: each file uses what the ones before it define.
#include "registers.h"
#include "epilogue.h"
#include "finisher.h"
#ifndef JAXQ_OWN_GEMM
#include "gemm.h"
#endif
#include "grouped.h"
#include "patches.h"
#include "quads.h"
#include "depthwise.h"
#include "pool.h"
#include "rows.h"
#include "softmax.h"
#include "function.h"
#include "quantize_rows.h"
#include "norm.h"
#include "row_sums.h"
#include "peak.h"

#define JAXQ_NAME_OF(isa) #isa
#define JAXQ_NAME(isa) JAXQ_NAME_OF(isa)

namespace jaxq {
namespace JAXQ_ISA {

inline void nothing_to_set() {}

constexpr Kernels kKernels = {JAXQ_NAME(JAXQ_ISA),
                              kTakesSigned,
                              kTakesUnsigned,
                              true,
                              nothing_to_set,
                              nothing_to_set,
                              peak,
                              gemm,
                              grouped_dot,
                              patches,
                              band,
                              pack,
                              pack_depthwise,
                              depthwise,
                              max_pool,
                              sum_pool,
                              elementwise,
                              sum,
                              table,
                              quantize,
                              dequantize,
                              function,
                              quantize_rows,
                              softmax,
                              layer_norm,
                              add_rows,
                              sum_rows};

}  // namespace JAXQ_ISA
}  // namespace jaxq
