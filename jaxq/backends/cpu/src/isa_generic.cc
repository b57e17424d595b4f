#define JAXQ_ISA generic
#include "simd_generic.h"
#include "table.h"

namespace jaxq {
const Kernels* kernels_generic() { return &generic::kKernels; }
}  // namespace jaxq
