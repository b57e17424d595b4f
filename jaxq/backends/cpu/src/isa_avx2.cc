#define JAXQ_ISA avx2
#include "simd_avx2.h"
#include "table.h"

namespace jaxq {
const Kernels* kernels_avx2() { return &avx2::kKernels; }
}  // namespace jaxq
