// The threads of one call: the calling one, and those of XLA's pool that come to help.
//
// A helper is scheduled once a call and takes part in every operation from the moment it arrives; nobody waits for one
// that has not arrived, only for tasks that one has taken. So a call ends also where the pool has no thread to spare, or
// none at all (after fork).
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace jaxq {

class Team {
 public:
  // Of up to `threads`, the calling one among them.
  explicit Team(int64_t threads = 1) : ranges_(threads < kMostRanges ? threads : kMostRanges) {}

  // That share tasks; more may come to help.
  int64_t threads() const { return ranges_; }

  struct Job {
    void (*run)(const void* context, int64_t task) = nullptr;
    const void* context = nullptr;
    int64_t tasks = 0;
    std::atomic<int64_t> done{0};
  };

  // Runs `task(i)` for every i below `tasks`, on all threads that are here, and returns when all are done. Each thread
  // begins with a range of its own: of one operation after another it works on the same part, which its caches hold.
  template <typename Task>
  void parallel(int64_t tasks, const Task& task) {
    if (tasks == 1 || ranges_ == 1) {
      for (int64_t i = 0; i < tasks; ++i) task(i);
      return;
    }
    ++generation_;
    Job& job = jobs_[generation_ % 2];
    job.run = [](const void* context, int64_t i) { (*static_cast<const Task*>(context))(i); };
    job.context = &task;
    job.tasks = tasks;
    job.done.store(0, std::memory_order_relaxed);
    for (int64_t r = 0; r < ranges_; ++r) {
      const int64_t size = end_of(r, tasks) - end_of(r - 1, tasks);
      tickets_[r].value.store(generation_ << 32 | static_cast<uint64_t>(size), std::memory_order_release);
    }
    while (take_one(0)) {
    }
    for (int64_t spins = 0; job.done.load(std::memory_order_acquire) != tasks; ++spins) rest(spins);
  }

  // The loop of a helper.
  void help() {
    const int64_t range = arrived_.fetch_add(1, std::memory_order_relaxed) % ranges_;
    for (int64_t spins = 0; !stopped_.load(std::memory_order_acquire); ++spins) {
      if (take_one(range)) {
        spins = 0;
      } else {
        rest(spins);
      }
    }
  }

  void stop() { stopped_.store(true, std::memory_order_release); }

 private:
  static constexpr int64_t kMostRanges = 16;

  struct alignas(64) Ticket {
    std::atomic<uint64_t> value{0};
  };

  int64_t end_of(int64_t range, int64_t tasks) const { return tasks * (range + 1) / ranges_; }

  // One of the range, or of the next one that has any. The high half of a ticket is the job's number, the low half how
  // many tasks of the range nobody has taken. A job's fields are read only after a task of it was taken, and they stay
  // until that task is done.
  bool take_one(int64_t range) {
    for (int64_t i = 0; i < ranges_; ++i) {
      const int64_t r = (range + i) % ranges_;
      uint64_t ticket = tickets_[r].value.load(std::memory_order_acquire);
      while ((ticket & 0xFFFFFFFF) != 0) {
        if (!tickets_[r].value.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                                     std::memory_order_acquire)) {
          continue;
        }
        Job& job = jobs_[(ticket >> 32) % 2];
        job.run(job.context, end_of(r, job.tasks) - static_cast<int64_t>(ticket & 0xFFFFFFFF));
        job.done.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  static void rest(int64_t spins) {
    if (spins > 4000) return std::this_thread::yield();
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const int64_t ranges_;
  Ticket tickets_[kMostRanges];
  std::atomic<int64_t> arrived_{1};
  std::atomic<bool> stopped_{false};
  uint64_t generation_ = 0;
  Job jobs_[2];
};

}  // namespace jaxq
