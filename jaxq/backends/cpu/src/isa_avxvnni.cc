#define JAXQ_ISA avxvnni
#include "simd_avx2.h"
#include "table.h"

namespace jaxq {
const Kernels* kernels_avxvnni() { return &avxvnni::kKernels; }
}  // namespace jaxq
