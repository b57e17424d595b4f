// The kernels of the instruction sets that a test is linked with.
#pragma once
#include <string>

#include "kernels.h"

namespace jaxq {

const Kernels* kernels_generic();
const Kernels* kernels_neon();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512();
const Kernels* kernels_amx();

inline const Kernels* kernels_of(const std::string& name) {
#ifdef JAXQ_HAVE_AMX
  if (name == "amx") return kernels_amx();
#endif
#ifdef JAXQ_HAVE_AVX512
  if (name == "avx512") return kernels_avx512();
#endif
#ifdef JAXQ_HAVE_AVXVNNI
  if (name == "avxvnni") return kernels_avxvnni();
#endif
#ifdef JAXQ_HAVE_AVX2
  if (name == "avx2") return kernels_avx2();
#endif
#ifdef JAXQ_HAVE_NEON
  if (name == "neon") return kernels_neon();
#endif
  return name == "generic" ? kernels_generic() : nullptr;
}

}  // namespace jaxq
