// The XLA FFI calls of jaxq/calibration/trials.py. Each thread takes pieces of the value, the same piece of all trials.
#include "trials.h"

#include <cmath>
#include <new>
#include <vector>

#include "crew.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxq {
namespace {

constexpr int64_t kPiece = 1 << 14;

// run(piece, first, size) for all pieces of n values.
template <typename Run>
void in_pieces(ffi::ThreadPool& pool, int64_t n, const Run& run) {
  const int64_t pieces = (n + kPiece - 1) / kPiece;
  with_team(pool, std::min<int64_t>(pool.num_threads(), pieces), [&](Team& team) {
    team.parallel(pieces, [&](int64_t piece) {
      const int64_t first = piece * kPiece;
      run(piece, first, std::min(kPiece, n - first));
    });
  });
}

ffi::Error wrong_size() { return ffi::Error::InvalidArgument("jaxq: trials of another size than their results"); }

ffi::Error no_memory() { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxq: no memory for measuring errors"); }

ffi::Error run_trials(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::BufferR1<ffi::F32> scales,
                      ffi::ResultBuffer<ffi::F32> results, float lo, float hi) {
  const auto n = static_cast<int64_t>(x.element_count()), count = static_cast<int64_t>(scales.element_count());
  if (static_cast<int64_t>(results->element_count()) != n * (count + 1)) return wrong_size();
  const float* from = x.typed_data();
  float* to = results->typed_data();
  try {
    in_pieces(pool, n, [&](int64_t, int64_t first, int64_t size) {
      std::copy_n(from + first, size, to + first);
      for (int64_t i = 0; i < count; ++i) {
        quantized(from + first, size, scales.typed_data()[i], lo, hi, to + (i + 1) * n + first);
      }
    });
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

ffi::Error run_errors(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> y, ffi::ResultBuffer<ffi::F32> first,
                      ffi::ResultBufferR1<ffi::F32> results) {
  const auto rows = static_cast<int64_t>(results->element_count());
  if (rows == 0 || y.dimensions().size() == 0 || y.dimensions()[0] != rows) return wrong_size();
  const int64_t n = static_cast<int64_t>(y.element_count()) / rows;
  if (static_cast<int64_t>(first->element_count()) != n) return wrong_size();
  const float* exact = y.typed_data();
  try {
    std::vector<double> sums(static_cast<size_t>((n + kPiece - 1) / kPiece * rows));
    in_pieces(pool, n, [&](int64_t piece, int64_t at, int64_t size) {
      std::copy_n(exact + at, size, first->typed_data() + at);
      double* of_piece = &sums[static_cast<size_t>(piece * rows)];
      of_piece[0] = squares(exact + at, size);
      for (int64_t i = 1; i < rows; ++i) of_piece[i] = squared_errors(exact + i * n + at, exact + at, size);
    });
    std::vector<double> totals(static_cast<size_t>(rows));
    for (size_t i = 0; i < sums.size(); ++i) totals[i % totals.size()] += sums[i];
    float* out = results->typed_data();
    out[0] = static_cast<float>(std::sqrt(totals[0]));
    for (int64_t i = 1; i < rows; ++i) {
      const double error = totals[static_cast<size_t>(i)];
      out[i] = error == 0 ? 0 : static_cast<float>(error / totals[0]);
    }
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

}  // namespace
}  // namespace jaxq

#define JAXQ_EXPORT extern "C" __attribute__((visibility("default")))

JAXQ_EXPORT XLA_FFI_Error* jaxq_trials(XLA_FFI_CallFrame* frame) {
  static auto* handler = ffi::Ffi::Bind()
                             .Ctx<ffi::ThreadPool>()
                             .Arg<ffi::Buffer<ffi::F32>>()
                             .Arg<ffi::BufferR1<ffi::F32>>()
                             .Ret<ffi::Buffer<ffi::F32>>()
                             .Attr<float>("lo")
                             .Attr<float>("hi")
                             .To(jaxq::run_trials)
                             .release();
  return handler->Call(frame);
}

JAXQ_EXPORT XLA_FFI_Error* jaxq_trial_errors(XLA_FFI_CallFrame* frame) {
  static auto* handler = ffi::Ffi::Bind()
                             .Ctx<ffi::ThreadPool>()
                             .Arg<ffi::Buffer<ffi::F32>>()
                             .Ret<ffi::Buffer<ffi::F32>>()
                             .Ret<ffi::BufferR1<ffi::F32>>()
                             .To(jaxq::run_errors)
                             .release();
  return handler->Call(frame);
}
