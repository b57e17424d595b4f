#define JAXQ_ISA avx512
#include "simd_avx512.h"
// The order matters: each file uses what the one before it defines.
#include "registers.h"
#include "epilogue.h"
#include "gemm.h"
#include "patches.h"
#include "peak.h"
