#define JAXQ_ISA neon
#include "simd_neon.h"
#include "table.h"

namespace jaxq {
const Kernels* kernels_neon() { return &neon::kKernels; }
}  // namespace jaxq
