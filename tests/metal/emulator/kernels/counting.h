// Adds for tests of the emulator: an atomic one, and one that loses updates.
#pragma once

#include <metal_stdlib>
using namespace metal;

namespace mlxhog {

// shared[i % words] += step, atomically.
inline void atomic_count(const device float* shared, float step, uint words, device uint* done, uint i) {
  device atomic_float* at = (device atomic_float*)shared;
  atomic_fetch_add_explicit(at + i % words, step, memory_order_relaxed);
  if (i == 0) done[0] = 1;
}

// The same as a plain read and a plain write.
inline void plain_count(const device float* shared, float step, uint words, device uint* done, uint i) {
  device float* at = (device float*)shared + i % words;
  float old = *at;
  metal_emulator::race_point();
  *at = old + step;
  if (i == 0) done[0] = 1;
}

}  // namespace mlxhog
