#define JAXQ_ISA avx512
#include "simd_avx512.h"
// The order matters: each file uses what the ones before it define.
#include "registers.h"
#include "epilogue.h"
#include "gemm.h"
#include "patches.h"
#include "quads.h"
#include "depthwise.h"
#include "pool.h"
#include "rows.h"
#include "softmax.h"
#include "norm.h"
#include "peak.h"
#include "table.h"

namespace jaxq {

const Kernels* kernels_avx512() { return &avx512::kKernels; }

}  // namespace jaxq
