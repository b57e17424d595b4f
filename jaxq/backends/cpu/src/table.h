// The kernels over the vectors of one instruction set, JAXQ_ISA, whose simd_*.h is included before this file, and their
// table, jaxq::JAXQ_ISA::kKernels.
//
// Nothing of the standard library's inline code may come in: the linker keeps one copy of it for the whole library, and
// that copy would have instructions that not every machine knows.
#pragma once

// The order matters: each file uses what the one before it defines.
#include "registers.h"
#include "epilogue.h"
#include "gemm.h"
#include "patches.h"
#include "peak.h"

#define JAXQ_STRING(x) #x
#define JAXQ_NAME(x) JAXQ_STRING(x)

namespace jaxq {
namespace JAXQ_ISA {

inline void nothing() {}

constexpr Kernels kKernels = {JAXQ_NAME(JAXQ_ISA), kTakesSigned, kTakesUnsigned, nothing, nothing, peak, gemm, patches, pack};

}  // namespace JAXQ_ISA
}  // namespace jaxq
