// What the library exports: the FFI handler of a region of int8 nodes, and what library.py asks of it.
#include <cstdint>

#include "cpu_features.h"
#include "xla/ffi/api/ffi.h"

#define JAXQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace ffi = xla::ffi;

namespace {

ffi::Error Region(ffi::RemainingArgs, ffi::RemainingRets, ffi::Span<const int64_t>) {
  return ffi::Error(ffi::ErrorCode::kUnimplemented, "jaxq_region: not built");
}

}  // namespace

JAXQ_EXPORT XLA_FFI_Error* jaxq_region(XLA_FFI_CallFrame* call_frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxq_region, Region,
                              ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<ffi::Span<const int64_t>>(
                                  "program"));

// The version of the FFI API that this was compiled against: a jaxlib with an older one does not take the handlers.
JAXQ_EXPORT int jaxq_ffi_api_major() { return XLA_FFI_API_MAJOR; }
JAXQ_EXPORT int jaxq_ffi_api_minor() { return XLA_FFI_API_MINOR; }

JAXQ_EXPORT const char* jaxq_isa() { return jaxq::IsaName(jaxq::CurrentIsa()); }
JAXQ_EXPORT const char* jaxq_isas() { return jaxq::AvailableIsas(); }
JAXQ_EXPORT int jaxq_set_isa(const char* name) { return jaxq::SetIsa(name) ? 0 : 1; }

// The int8 GOP/s that the instruction set's dot products reach on that many threads; 0 where that is not measured.
JAXQ_EXPORT double jaxq_peak(const char* isa, int threads) {
  (void)isa;
  (void)threads;
  return 0;
}
