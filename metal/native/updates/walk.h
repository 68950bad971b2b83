// How an update goes over shared memory: which lock, in which order.
//
// Stripe i of the lock words guards floats [1024 i, 1024 (i + 1)) of the parameter segment. Workers start at
// different stripes and then ascend: the prefetcher still sees a line, and two workers do not fall into
// lockstep on the same cache lines. A thread holds one lock at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "../ops/pool.h"
#include "locks.h"
#include "steps.h"
#include "turns.h"

namespace mlxhog {

// in_turn: as lossless, and every access is noted or repeated (turns.h).
enum class Mode : int { lossless = 0, racy = 1, cas = 2, in_turn = 3 };

inline bool takes_locks(Mode mode) { return mode == Mode::lossless || mode == Mode::in_turn; }

inline constexpr std::ptrdiff_t kStripes = -1;  // row parameters give their first lock word instead

// The splitmix64 finalizer: neighboring seeds start far apart.
inline std::uint64_t scatter(std::uint64_t seed) {
  seed += 0x9e3779b97f4a7c15ull;
  seed = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9ull;
  seed = (seed ^ seed >> 27) * 0x94d049bb133111ebull;
  return seed ^ seed >> 31;
}

// Number of stripe words that [0, floats) needs.
inline std::size_t stripes(std::size_t floats) { return (floats + kStripe - 1) / kStripe; }

inline std::size_t rotated(std::size_t k, std::size_t start, std::size_t n) {
  return k < n - start ? start + k : k - (n - start);
}

// Runs 0 .. n-1, each under its own lock, from `start` on with wrap-around. A run whose lock is held is left
// for the end: its owner may have lost its core, and then everything else can be done meanwhile.
template <class WordOf, class Run>
void each_locked(Locks& locks, std::size_t n, std::size_t start, WordOf word_of, Run run) {
  constexpr std::size_t kLater = 32;
  std::size_t later[kLater], n_later = 0;
  const auto finish = [&](std::size_t i) {
    run(i);
    locks.unlock(word_of(i));
  };
  for (std::size_t k = 0; k < n; ++k) {
    const std::size_t i = rotated(k, start, n);
    if (locks.try_lock(word_of(i))) {
      finish(i);
    } else if (n_later < kLater) {
      later[n_later++] = i;
    } else {
      locks.lock(word_of(i));
      finish(i);
    }
  }
  for (std::size_t k = 0; k < n_later; ++k) {
    locks.lock(word_of(later[k]));
    finish(later[k]);
  }
}

// Each in its turn and in this order. Never inlined, so that it changes no code of the other modes.
template <class WordOf, class Run>
__attribute__((noinline)) void each_in_turn(Locks& locks, std::size_t n, std::size_t start, WordOf word_of, Run run) {
  for (std::size_t k = 0; k < n; ++k) {
    const std::size_t i = rotated(k, start, n);
    locks.turns->access(locks, word_of(i), [&] { run(i); });
  }
}

// One of the two, by the mode.
template <class WordOf, class Run>
void each_in_mode(Locks& locks, Mode mode, std::size_t n, std::size_t start, WordOf word_of, Run run) {
  if (mode == Mode::in_turn) each_in_turn(locks, n, start, word_of, run);
  else each_locked(locks, n, start, word_of, run);
}

template <class Step>
void write_by_cas(const Step& step, std::size_t p, std::size_t q, std::size_t n) {
  for (std::size_t i = 0; i < n; i += kStripe) step.apply_cas(p + i, q + i, std::min(kStripe, n - i));
}

// `count` floats of a parameter at `offset` of the segment, starting `p` floats into the parameter and `q`
// into the gradient. `locks` may be null where `mode` takes none.
template <class Step>
void walk_stripes(Locks* locks, Mode mode, std::size_t offset, std::size_t p, std::size_t q, std::size_t count,
                  std::uint64_t seed, const Step& step) {
  if (count == 0) return;
  const std::size_t begin = offset + p, end = begin + count;
  const std::size_t first = begin / kStripe, blocks = stripes(end) - first;
  const std::size_t start = scatter(seed) % blocks;
  // Blocks [from, to), counted from the first, cut to this slice: write(p, q, n).
  const auto cut = [&](std::size_t from, std::size_t to, auto write) {
    const std::size_t low = std::max(begin, (first + from) * kStripe);
    const std::size_t high = std::min(end, (first + to) * kStripe);
    if (low < high) write(low - offset, q + (low - begin), high - low);
  };
  const auto add = [&](std::size_t p_, std::size_t q_, std::size_t n) { step.apply(p_, q_, n); };
  const auto cas = [&](std::size_t p_, std::size_t q_, std::size_t n) { write_by_cas(step, p_, q_, n); };
  switch (mode) {
    case Mode::lossless:
    case Mode::in_turn:
      each_in_mode(*locks, mode, blocks, start, [&](std::size_t i) { return first + i; },
                   [&](std::size_t i) { cut(i, i + 1, add); });
      break;
    case Mode::racy:
      cut(start, blocks, add);
      cut(0, start, add);
      break;
    case Mode::cas:
      cut(start, blocks, cas);
      cut(0, start, cas);
      break;
  }
}

// Rows of a parameter: row index[k] (k when index is null) takes values from row k of the gradient.
template <class Step>
void walk_rows(Locks* locks, Mode mode, std::size_t offset, std::size_t width, std::ptrdiff_t word0,
               const std::int32_t* index, std::size_t rows, std::uint64_t seed, const Step& step) {
  if (rows == 0 || width == 0) return;
  const auto row_of = [&](std::size_t k) { return index == nullptr ? k : static_cast<std::size_t>(index[k]); };
  const std::size_t start = scatter(seed) % rows;
  if (takes_locks(mode) && word0 != kStripes)
    return each_in_mode(*locks, mode, rows, start,
                        [&](std::size_t k) { return static_cast<std::size_t>(word0) + row_of(k); },
                        [&](std::size_t k) { step.apply(row_of(k) * width, k * width, width); });
  for (std::size_t k = 0; k < rows; ++k) {
    const std::size_t i = rotated(k, start, rows);
    walk_stripes(locks, mode, offset, row_of(i) * width, i * width, width, seed, step);
  }
}

// -- by several threads of a worker: the write of a dense parameter, and reads
//
// No two threads have an element in common, so the bits are those of one thread, and each holds one lock at a time. A
// call returns when all threads are done: ledger, seqlock counters and version around it mean what they mean with one
// thread. A death leaves a stripe of each thread half written, under locks that others take over one by one.

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
