// Passes over whole arrays by several threads of a worker: the write of a dense parameter, and reads.
//
// No two threads have an element in common, so the bits are those of one thread, and each holds one lock at a time. A
// call returns when all threads are done: ledger, seqlock counters and version around it mean what they mean with one
// thread. A death leaves a stripe of each thread half written, under locks that others take over one by one.
#pragma once

#include <algorithm>
#include <functional>

#include "../ops/pool.h"
#include "walk.h"

namespace mlxhog {

inline constexpr std::size_t kMinStripes = 32;   // of a task: waking a thread costs a tenth of their time
inline constexpr std::size_t kTasksPerThread = 4;  // a thread that loses its core holds up a quarter of its share

// Cuts `n` stripes into runs of neighbors and calls run(from, to) of each, beginning with one that `seed` chooses.
template <class Run>
void in_runs(std::size_t n, std::uint64_t seed, int threads, const Run& run) {
  const std::size_t most = threads > 1 ? kTasksPerThread * static_cast<std::size_t>(threads) : 1;
  const std::size_t runs = std::min(most, n / kMinStripes);
  if (runs <= 1) return run(std::size_t{0}, n);
  const std::size_t start = scatter(seed) % runs;
  const auto task = [&](Index k) {
    const std::size_t i = rotated(static_cast<std::size_t>(k), start, runs);
    run(n * i / runs, n * (i + 1) / runs);
  };
  parallel_for(static_cast<Index>(runs), threads, std::ref(task));
}

// Calls run(begin, count) of parts of `floats` private or read elements.
template <class Run>
void in_parts(std::size_t floats, int threads, const Run& run) {
  in_runs(stripes(floats), 0, threads, [&](std::size_t from, std::size_t to) {
    run(from * kStripe, std::min(to * kStripe, floats) - from * kStripe);
  });
}

// walk_stripes of a whole parameter at `offset` of the segment, or of a part of it.
template <class Step>
void walk_dense(Locks* locks, Mode mode, std::size_t offset, std::size_t count, std::uint64_t seed, int threads,
                const Step& step) {
  const std::size_t first = offset / kStripe, end = offset + count;
  if (mode == Mode::in_turn) threads = 1;  // turns have an order, threads have none
  in_runs(stripes(end) - first, seed, threads, [&](std::size_t from, std::size_t to) {
    // Release: a process that sees a write of this thread also sees the seqlock counters of its caller.
    __atomic_thread_fence(__ATOMIC_RELEASE);
    const std::size_t low = std::max(offset, (first + from) * kStripe), high = std::min(end, (first + to) * kStripe);
    walk_stripes(locks, mode, offset, low - offset, low - offset, high - low, seed, step);
  });
}

}  // namespace mlxhog
