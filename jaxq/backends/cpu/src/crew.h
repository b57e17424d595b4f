// A team of XLA's threads around a piece of work.
#pragma once
#include <cstdint>
#include <memory>

#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace jaxq {

// What threads that need nothing set up enter and leave.
struct Anything {
  void enter() const {}
  void leave() const {}
};

// work(team), where up to `threads` threads help, the calling one among them; each enters `place` before and leaves it
// behind. A helper may come when the work is done: `place` outlives the call.
template <typename Place, typename Work>
void with_team(xla::ffi::ThreadPool& pool, int64_t threads, const Place& place, const Work& work) {
  auto team = std::make_shared<Team>(threads);
  for (int64_t i = 1; i < threads; ++i) {
    pool.Schedule([team, &place] {
      place.enter();
      team->help();
      place.leave();
    });
  }
  struct Stop {
    Team& team;
    const Place& place;
    ~Stop() {
      team.stop();
      place.leave();
    }
  } stop{*team, place};
  place.enter();
  work(*team);
}

template <typename Work>
void with_team(xla::ffi::ThreadPool& pool, int64_t threads, const Work& work) {
  static const Anything anything;
  with_team(pool, threads, anything, work);
}

}  // namespace jaxq
