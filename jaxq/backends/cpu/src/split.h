// How an operation is cut into tasks: parts of its rows times parts of its channels.
#pragma once
#include <algorithm>
#include <cstdint>

namespace jaxq {

struct Range {
  int64_t first, last;
};

// Part i of so many parts, about equal, of n things; all but the last end at a multiple of `unit`.
inline Range part(int64_t n, int64_t i, int64_t parts, int64_t unit = 1) {
  const int64_t units = (n + unit - 1) / unit;
  return {units * i / parts * unit, std::min(units * (i + 1) / parts * unit, n)};
}

// Things of one kind: how many; at most so many in a part, for the caches; at least so many where that is possible, as
// they share work.
struct Things {
  int64_t n, most, least;
};

struct Split {
  int64_t rows, channels;  // parts

  // Of `groups` times the same, for so many threads: a few tasks for each, and equally many. Rows come first, since
  // threads that work on the same rows of one operation after another find them in their caches.
  Split(const Things& r, const Things& c, int64_t groups, int64_t threads)
      : rows(std::max<int64_t>((r.n + r.most - 1) / r.most, 1)), channels(std::max<int64_t>((c.n + c.most - 1) / c.most, 1)) {
    if (threads == 1) return;
    while (rows * channels * groups < 4 * threads && r.n / (2 * rows) >= r.least) rows *= 2;
    while (rows * channels * groups < 2 * threads && c.n / (channels + 1) >= c.least) ++channels;
    if (rows >= threads) {
      rows = (rows + threads - 1) / threads * threads;
    } else {
      for (int64_t more = channels; more < channels + threads && more <= c.n; ++more) {
        if (rows * more * groups % threads == 0) {
          channels = more;
          break;
        }
      }
    }
  }
};

}  // namespace jaxq
