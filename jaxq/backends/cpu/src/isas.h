// The kernels of each instruction set, of those that were compiled in.
#pragma once
#include "cpu_features.h"
#include "kernels.h"

namespace jaxq {

const Kernels* kernels_generic();
const Kernels* kernels_neon();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512();
const Kernels* kernels_amx();

inline const Kernels& kernels_of(Isa isa) {
  switch (isa) {
#ifdef JAXQ_HAVE_AMX
    case Isa::kAmx: return *kernels_amx();
#endif
#ifdef JAXQ_HAVE_AVX512
    case Isa::kAvx512: return *kernels_avx512();
#endif
#ifdef JAXQ_HAVE_AVXVNNI
    case Isa::kAvxVnni: return *kernels_avxvnni();
#endif
#ifdef JAXQ_HAVE_AVX2
    case Isa::kAvx2: return *kernels_avx2();
#endif
#ifdef JAXQ_HAVE_NEON
    case Isa::kNeon: return *kernels_neon();
#endif
    default: return *kernels_generic();
  }
}

}  // namespace jaxq
