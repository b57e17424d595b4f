#define JAXQ_ISA avx512
#include "simd_avx512.h"
#include "table.h"

namespace jaxq {
const Kernels* kernels_avx512() { return &avx512::kKernels; }
}  // namespace jaxq
