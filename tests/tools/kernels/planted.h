// Kernels with one fault each, to see that it is found.
#pragma once

#include <metal_stdlib>

using namespace metal;

namespace mlxhog {

// Thread 255 of a full launch reads x[256], one past the end.
inline void past_the_end(const device float* x, device float* y, uint i) { y[i] = x[i + 1]; }

// The last thread of a group reads past the group's variable.
inline void past_the_tile(const device float* x, device float* y, threadgroup float* tile, uint i, uint rank) {
  tile[rank] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[rank + 1];
}

inline void signed_overflow(const device float* x, device float* y, uint i) {
  y[i] = float(int(x[i]) * 65536);
}

inline void long_shift(const device float* x, device float* y, uint i) { y[i] = float(1u << uint(x[i])); }

// The barrier between writing and reading is missing.
inline void no_barrier(const device float* x, device float* y, threadgroup float* tile, uint i, uint rank) {
  tile[rank] = x[i];
  y[i] = rank > 0 ? tile[rank - 1] : 0.0f;
}

// Every launch writes one word of what it shares with others.
inline void one_word(const device float* x, device float* y, uint i) {
  ((device float*)x)[0] = 1.0f;
  y[i] = 1.0f;
}

}  // namespace mlxhog
