// How an update goes over shared memory: which lock, in which order.
//
// Stripe i of the lock words guards floats [1024 i, 1024 (i + 1)) of the parameter segment. Workers start at
// different stripes and then ascend: the prefetcher still sees a line, and two workers do not fall into
// lockstep on the same cache lines (spec hogwild.md 1.2). A worker holds one lock at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "locks.h"
#include "steps.h"

namespace mlxhog {

enum class Mode : int { lossless = 0, racy = 1, cas = 2 };

inline constexpr std::ptrdiff_t kStripes = -1;  // row parameters give their first lock word instead

// The splitmix64 finaliser: neighbouring seeds start far apart.
inline std::uint64_t scatter(std::uint64_t seed) {
  seed += 0x9e3779b97f4a7c15ull;
  seed = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9ull;
  seed = (seed ^ seed >> 27) * 0x94d049bb133111ebull;
  return seed ^ seed >> 31;
}

// Number of stripe words that [0, floats) needs.
inline std::size_t stripes(std::size_t floats) { return (floats + kStripe - 1) / kStripe; }

// One run under one lock. `word` may be kStripes only where `mode` takes no lock.
template <class Step>
void write_run(Locks* locks, Mode mode, std::ptrdiff_t word, std::size_t p, std::size_t q, std::size_t n,
               const Step& step) {
  switch (mode) {
    case Mode::lossless:
      locks->lock(static_cast<std::size_t>(word));
      step.apply(p, q, n);
      locks->unlock(static_cast<std::size_t>(word));
      break;
    case Mode::racy:
      step.apply(p, q, n);
      break;
    case Mode::cas:
      for (std::size_t i = 0; i < n; i += kStripe) step.apply_cas(p + i, q + i, std::min(kStripe, n - i));
      break;
  }
}

// `count` floats of a parameter at `offset` of the segment, starting `p` floats into the parameter.
template <class Step>
void walk_stripes(Locks* locks, Mode mode, std::size_t offset, std::size_t p, std::size_t q, std::size_t count,
                  std::uint64_t seed, const Step& step) {
  if (count == 0) return;
  const std::size_t begin = offset + p, end = begin + count;
  const std::size_t first = begin / kStripe, blocks = stripes(end) - first;
  const std::size_t start = scatter(seed) % blocks;
  const auto run = [&](std::size_t from_block, std::size_t to_block) {  // blocks counted from `first`
    const std::size_t from = std::max(begin, (first + from_block) * kStripe);
    const std::size_t to = std::min(end, (first + to_block) * kStripe);
    write_run(locks, mode, static_cast<std::ptrdiff_t>(first + from_block), from - offset, q + (from - begin),
              to - from, step);
  };
  if (mode == Mode::racy) {  // no locks, so no reason to stop at stripes
    run(start, blocks);
    if (start != 0) run(0, start);
    return;
  }
  for (std::size_t block = start; block < blocks; ++block) run(block, block + 1);
  for (std::size_t block = 0; block < start; ++block) run(block, block + 1);
}

// Rows of a parameter: row index[k] (k when index is null) takes values from row k of the gradient.
template <class Step>
void walk_rows(Locks* locks, Mode mode, std::size_t offset, std::size_t width, std::ptrdiff_t word0,
               const std::int32_t* index, std::size_t rows, std::uint64_t seed, const Step& step) {
  if (rows == 0 || width == 0) return;
  const auto one = [&](std::size_t k) {
    const std::size_t row = index == nullptr ? k : static_cast<std::size_t>(index[k]);
    if (word0 == kStripes) {
      walk_stripes(locks, mode, offset, row * width, k * width, width, seed, step);
    } else {
      write_run(locks, mode, word0 + static_cast<std::ptrdiff_t>(row), row * width, k * width, width, step);
    }
  };
  const std::size_t start = scatter(seed) % rows;
  for (std::size_t k = start; k < rows; ++k) one(k);
  for (std::size_t k = 0; k < start; ++k) one(k);
}

}  // namespace mlxhog
