// Version counters of blocks of parameters: how many steps went into each, at least.
#pragma once

#include "atomics.h"
#include "unfused.h"

namespace mlxhog {

// counters[blocks[i]] += 1; equal blocks add up. A block that does not exist is left out: done[i] says so.
// Relaxed, hence a launch of its own after the steps it announces have finished.
inline void version_bump(const device uint* counters, const device int* blocks, uint n, uint n_counters,
                         device uint* done, uint i) {
  if (i >= n) return;
  const int block = blocks[i];
  const bool inside = block >= 0 && uint(block) < n_counters;
  done[i] = inside ? 1u : 0u;
  if (inside) count(counters + block, 1u);
}

}  // namespace mlxhog
