#include "cpu_features.h"

#include <atomic>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <unistd.h>
#if defined(__x86_64__)
#include <sys/syscall.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace jaxq {
namespace {

struct Named {
  Isa isa;
  const char* name;
  bool (*detected)();
};

#if defined(__x86_64__)

// Each of these includes that the operating system saves the registers.
[[maybe_unused]] bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

[[maybe_unused]] bool HasAvxVnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return HasAvx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}

[[maybe_unused]] bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

// Linux lets a process use the tile registers only after it has asked; the permission holds for all of its threads,
// and for its children after a fork.
[[maybe_unused]] bool HasAmx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return HasAvx512() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 24 & 1) && (edx >> 25 & 1) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#elif defined(__aarch64__)

[[maybe_unused]] bool HasNeonDot() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1UL << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotProduct;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value;
#else
  return false;
#endif
}

#endif

// What was compiled in, best first.
constexpr Named kCompiled[] = {
#ifdef JAXQ_HAVE_AMX
    {Isa::kAmx, "amx", HasAmx},
#endif
#ifdef JAXQ_HAVE_AVX512
    {Isa::kAvx512, "avx512", HasAvx512},
#endif
#ifdef JAXQ_HAVE_AVXVNNI
    {Isa::kAvxVnni, "avxvnni", HasAvxVnni},
#endif
#ifdef JAXQ_HAVE_AVX2
    {Isa::kAvx2, "avx2", HasAvx2},
#endif
#ifdef JAXQ_HAVE_NEON
    {Isa::kNeon, "neon", HasNeonDot},
#endif
    {Isa::kGeneric, "generic", [] { return true; }},
};

struct Detected {
  Isa best = Isa::kGeneric;
  unsigned mask = 0;  // a bit for each Isa
  std::string names;

  Detected() {
    for (const Named& each : kCompiled) {
      if (!each.detected()) continue;
      if (mask == 0) best = each.isa;
      mask |= 1U << static_cast<unsigned>(each.isa);
      names += (names.empty() ? "" : ",") + std::string(each.name);
    }
  }
};

const Detected& Machine() {
  static const Detected detected;
  return detected;
}

std::atomic<int> chosen{-1};

}  // namespace

const char* AvailableIsas() { return Machine().names.c_str(); }

Isa CurrentIsa() {
  const int isa = chosen.load(std::memory_order_relaxed);
  return isa < 0 ? Machine().best : static_cast<Isa>(isa);
}

const char* IsaName(Isa isa) {
  for (const Named& each : kCompiled) {
    if (each.isa == isa) return each.name;
  }
  return "unknown";
}

bool FindIsa(const char* name, Isa* isa) {
  if (name == nullptr) return false;
  for (const Named& each : kCompiled) {
    if (std::strcmp(each.name, name) == 0) {
      *isa = each.isa;
      return Machine().mask >> static_cast<unsigned>(each.isa) & 1;
    }
  }
  return false;
}

bool SetIsa(const char* name) {
  Isa isa;
  if (!FindIsa(name, &isa)) return false;
  chosen.store(static_cast<int>(isa), std::memory_order_relaxed);
  return true;
}

}  // namespace jaxq
