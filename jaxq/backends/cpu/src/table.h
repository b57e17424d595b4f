// The table of this instruction set.
#pragma once

#define JAXQ_NAME_OF(isa) #isa
#define JAXQ_NAME(isa) JAXQ_NAME_OF(isa)

namespace jaxq {
namespace JAXQ_ISA {

inline void nothing_to_set() {}

constexpr Kernels kKernels = {JAXQ_NAME(JAXQ_ISA),
                              kTakesSigned,
                              kTakesUnsigned,
                              nothing_to_set,
                              nothing_to_set,
                              peak,
                              gemm,
                              patches,
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
                              softmax,
                              layer_norm};

}  // namespace JAXQ_ISA
}  // namespace jaxq
