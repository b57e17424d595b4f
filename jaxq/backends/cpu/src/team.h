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
  struct Job {
    void (*run)(const void* context, int64_t task) = nullptr;
    const void* context = nullptr;
    int64_t tasks = 0;
    std::atomic<int64_t> done{0};
  };

  // Runs `task(i)` for every i below `tasks`, on all threads that are here, and returns when all are done.
  template <typename Task>
  void parallel(int64_t tasks, const Task& task) {
    if (tasks == 1 || !helpers_) {
      for (int64_t i = 0; i < tasks; ++i) task(i);
      return;
    }
    ++generation_;
    Job& job = jobs_[generation_ % 2];
    job.run = [](const void* context, int64_t i) { (*static_cast<const Task*>(context))(i); };
    job.context = &task;
    job.tasks = tasks;
    job.done.store(0, std::memory_order_relaxed);
    ticket_.store(generation_ << 32 | static_cast<uint64_t>(tasks), std::memory_order_release);
    while (take_one()) {
    }
    for (int64_t spins = 0; job.done.load(std::memory_order_acquire) != tasks; ++spins) rest(spins);
  }

  // The loop of a helper.
  void help() {
    for (int64_t spins = 0; !stopped_.load(std::memory_order_acquire); ++spins) {
      if (take_one()) {
        spins = 0;
      } else {
        rest(spins);
      }
    }
  }

  void expect_helpers() { helpers_ = true; }
  void stop() { stopped_.store(true, std::memory_order_release); }

 private:
  // The high half of the ticket is the job's number, the low half how many of its tasks nobody has taken. A job's
  // fields are read only after a task of it was taken, and they stay until that task is done.
  bool take_one() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    do {
      if ((ticket & 0xFFFFFFFF) == 0) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire));
    Job& job = jobs_[(ticket >> 32) % 2];
    job.run(job.context, job.tasks - static_cast<int64_t>(ticket & 0xFFFFFFFF));
    job.done.fetch_add(1, std::memory_order_release);
    return true;
  }

  static void rest(int64_t spins) {
    if (spins > 4000) return std::this_thread::yield();
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::atomic<uint64_t> ticket_{0};
  std::atomic<bool> stopped_{false};
  uint64_t generation_ = 0;
  bool helpers_ = false;
  Job jobs_[2];
};

}  // namespace jaxq
