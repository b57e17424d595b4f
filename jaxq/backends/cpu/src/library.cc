// What library.py asks of the library, and the kernels of the instruction set in use.
#include <cstdint>
#include <thread>
#include <vector>

#include "chosen.h"
#include "cpu_features.h"
#include "isas.h"
#include "xla/ffi/api/ffi.h"

namespace jaxq {

const Kernels& chosen_kernels() { return kernels_of(CurrentIsa()); }

}  // namespace jaxq

#define JAXQ_EXPORT extern "C" __attribute__((visibility("default")))

// The version of the FFI API that this was compiled against: a jaxlib with an older one does not take the handlers.
JAXQ_EXPORT int jaxq_ffi_api_major() { return XLA_FFI_API_MAJOR; }
JAXQ_EXPORT int jaxq_ffi_api_minor() { return XLA_FFI_API_MINOR; }

JAXQ_EXPORT const char* jaxq_isa() { return jaxq::IsaName(jaxq::CurrentIsa()); }
JAXQ_EXPORT const char* jaxq_isas() { return jaxq::AvailableIsas(); }
JAXQ_EXPORT int jaxq_set_isa(const char* name) { return jaxq::SetIsa(name) ? 0 : 1; }

// The int8 GOP/s that the instruction set's dot products reach on that many threads; 0 where that is not measured.
JAXQ_EXPORT double jaxq_peak(const char* name, int threads) {
  jaxq::Isa isa;
  if (!jaxq::FindIsa(name, &isa)) return 0;
  const jaxq::Kernels& kernels = jaxq::kernels_of(isa);
  std::vector<double> rates(threads > 0 ? static_cast<size_t>(threads) : 1);
  std::vector<std::thread> running;
  for (double& rate : rates) {
    running.emplace_back([&kernels, &rate] {
      kernels.enter();
      rate = kernels.peak();
      kernels.leave();
    });
  }
  double total = 0;
  for (std::thread& thread : running) thread.join();
  for (const double rate : rates) total += rate;
  return total;
}
