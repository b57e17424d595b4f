// A team of XLA's threads around a piece of work.
#pragma once
#include <cstdint>
#include <memory>

#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace jaxq {

// work(team), where up to `threads` threads help, the calling one among them.
template <typename Work>
void with_team(xla::ffi::ThreadPool& pool, int64_t threads, const Work& work) {
  auto team = std::make_shared<Team>();
  struct Stop {
    Team& team;
    ~Stop() { team.stop(); }
  } stop{*team};
  for (int64_t i = 1; i < threads; ++i) {
    team->expect_helpers();
    pool.Schedule([team] { team->help(); });
  }
  work(*team);
}

}  // namespace jaxq
