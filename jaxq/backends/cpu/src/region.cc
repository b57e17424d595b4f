// The XLA FFI call that runs a region of the graph: its program on the call's buffers, block by block.
#include <algorithm>
#include <exception>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "arena.h"
#include "chosen.h"
#include "crew.h"
#include "operations.h"
#include "program.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxq {
namespace {

// A program and the call's buffers. Its operations compute one block of examples; for the next one the buffers move on by
// a step each, and the values in between are the block's own.
class Blocks {
 public:
  int64_t helpers;

  Blocks(ffi::Span<const int64_t> program, std::vector<Buffer> buffers) : buffers_(std::move(buffers)) {
    constexpr size_t kHeader = 5;
    if (program.size() < kHeader || program[0] != kProgramVersion) {
      throw Invalid("the program is of another version of jaxq than its CPU library");
    }
    if (buffers_.empty()) throw Invalid("the program is called without its constants");
    arena_ = program[1];
    helpers = program[2];
    count_ = program[3];
    const size_t steps = buffers_.size() - 1;
    if (arena_ < 0 || arena_ > (int64_t{1} << 40)) throw Invalid("the program wants no valid amount of memory");
    if (count_ < 1 || count_ > (int64_t{1} << 31)) throw Invalid("the program has no valid number of blocks");
    if (program[4] != static_cast<int64_t>(steps) || program.size() < kHeader + steps + 1) {
      throw Invalid("the program is one of other buffers");
    }
    steps_.push_back(0);  // of the constants
    steps_.insert(steps_.end(), program.begin() + kHeader, program.begin() + kHeader + steps);
    for (size_t i = 0; i < buffers_.size(); ++i) {
      if (steps_[i] < 0 || steps_[i] > buffers_[i].size / count_) throw Invalid("the program's blocks end behind a buffer");
    }
    operations_ = program[kHeader + steps];
    begin_ = program.begin() + kHeader + steps + 1;
    size_ = program.size() - kHeader - steps - 1;
  }

  // One block on all threads; several on one each.
  void run(const Kernels& kernels, Team& team) const {
    if (count_ == 1) return run_block(0, kernels, team);
    std::mutex mutex;
    std::exception_ptr error;  // an exception of a helper's block is the call's
    team.parallel(count_, [&](int64_t block) {
      try {
        Team alone;
        run_block(block, kernels, alone);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  }

 private:
  void run_block(int64_t block, const Kernels& kernels, Team& team) const {
    std::vector<Buffer> buffers = buffers_;
    for (size_t i = 0; i < buffers.size(); ++i) {
      buffers[i].data += block * steps_[i];
      buffers[i].size -= block * steps_[i];
    }
    Arena arena(arena_);
    buffers.push_back({arena.data(), arena_});
    Operations(Reader(begin_, size_, std::move(buffers)), kernels, team).run(operations_);
  }

  std::vector<Buffer> buffers_;
  std::vector<int64_t> steps_;
  int64_t arena_, count_, operations_;
  const int64_t* begin_;
  size_t size_;
};

ffi::Error run_region(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets results,
                      ffi::Span<const int64_t> program) {
  try {
    std::vector<Buffer> buffers;
    buffers.reserve(args.size() + results.size() + 1);
    for (size_t i = 0; i < args.size(); ++i) {
      auto buffer = args.get<ffi::AnyBuffer>(i);
      if (buffer.has_error()) return buffer.error();
      buffers.push_back({static_cast<uint8_t*>(buffer->untyped_data()), static_cast<int64_t>(buffer->size_bytes())});
    }
    for (size_t i = 0; i < results.size(); ++i) {
      auto buffer = results.get<ffi::AnyBuffer>(i);
      if (buffer.has_error()) return buffer.error();
      ffi::AnyBuffer result = **buffer;
      buffers.push_back({static_cast<uint8_t*>(result.untyped_data()), static_cast<int64_t>(result.size_bytes())});
    }
    const Blocks blocks(program, std::move(buffers));

    const Kernels& kernels = chosen_kernels();
    // A helper more than there is work for would only wake up.
    const int64_t threads = std::min<int64_t>(pool.num_threads(), blocks.helpers + 1);
    with_team(pool, threads, kernels, [&](Team& team) { blocks.run(kernels, team); });
    return ffi::Error::Success();
  } catch (const Invalid& error) {
    return ffi::Error::InvalidArgument(std::string("jaxq: ") + error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxq: no memory for the values inside a region");
  }
}

}  // namespace
}  // namespace jaxq

#define JAXQ_EXPORT extern "C" __attribute__((visibility("default")))

JAXQ_EXPORT XLA_FFI_Error* jaxq_region(XLA_FFI_CallFrame* frame) {
  static auto* handler = ffi::Ffi::Bind()
                             .Ctx<ffi::ThreadPool>()
                             .RemainingArgs()
                             .RemainingRets()
                             .Attr<ffi::Span<const int64_t>>("program")
                             .To(jaxq::run_region)
                             .release();
  return handler->Call(frame);
}
