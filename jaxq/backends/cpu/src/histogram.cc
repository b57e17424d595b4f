// The XLA FFI call that counts an array: each thread in a histogram of its own, which are merged.
#include "histogram.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>

#include "crew.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxq {
namespace {

// Fewer pieces than these are counted before another thread has come.
constexpr int64_t kPiecesPerThread = 4;

Histogram count(const float* x, int64_t n, int64_t threads, Team& team) {
  Histogram total;
  std::mutex mutex;
  std::atomic<int64_t> next{0};
  team.parallel(threads, [&](int64_t) {
    Histogram mine;
    for (int64_t at; (at = next.fetch_add(Histogram::kPiece, std::memory_order_relaxed)) < n;) {
      mine.add(x + at, std::min(Histogram::kPiece, n - at));
    }
    const std::lock_guard<std::mutex> lock(mutex);
    total.merge(mine);
  });
  return total;
}

ffi::Error run_histogram(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::U32> counts,
                         ffi::ResultBufferR0<ffi::F32> amax) {
  const auto n = static_cast<int64_t>(x.element_count());
  if (counts->element_count() != 2 * Histogram::kSlots) {
    return ffi::Error::InvalidArgument("jaxq: a histogram has 2 x 2050 counts");
  }
  if (n >= int64_t{1} << 31) return ffi::Error::InvalidArgument("jaxq: the array has more than 2^31 - 1 elements");
  try {
    const int64_t threads = std::clamp<int64_t>(n / (kPiecesPerThread * Histogram::kPiece), 1, pool.num_threads());
    Histogram total;
    with_team(pool, threads, [&](Team& team) { total = count(x.typed_data(), n, threads, team); });
    total.write(counts->typed_data(), amax->typed_data());
    std::fill_n(counts->typed_data() + Histogram::kSlots, Histogram::kSlots, 0u);  // the high limbs
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxq: no memory for the threads of a histogram");
  }
}

}  // namespace
}  // namespace jaxq

#define JAXQ_EXPORT extern "C" __attribute__((visibility("default")))

JAXQ_EXPORT XLA_FFI_Error* jaxq_histogram(XLA_FFI_CallFrame* frame) {
  static auto* handler = ffi::Ffi::Bind()
                             .Ctx<ffi::ThreadPool>()
                             .Arg<ffi::Buffer<ffi::F32>>()
                             .Ret<ffi::Buffer<ffi::U32>>()
                             .Ret<ffi::BufferR0<ffi::F32>>()
                             .To(jaxq::run_histogram)
                             .release();
  return handler->Call(frame);
}
