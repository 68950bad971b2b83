// Relaxed atomics on shared memory that a kernel got as a read-only input.
//
// MLX declares every input const, so memory to write in place is cast here, in one place. Relaxed is the only order
// Metal has, and the right one: every element is an independent sum, and nothing else is published through it.
#pragma once

#include <metal_stdlib>

using namespace metal;

namespace mlxhog {

// Loses no add, also beside other 32-bit atomics on the same element; the result is rounded once.
inline void add(const device float* arena, uint at, float delta) {
  atomic_fetch_add_explicit((device atomic_float*)(arena + at), delta, memory_order_relaxed);
}

inline float load(const device float* arena, uint at) {
  return atomic_load_explicit((device atomic_float*)(arena + at), memory_order_relaxed);
}

inline void store(const device float* arena, uint at, float value) {
  atomic_store_explicit((device atomic_float*)(arena + at), value, memory_order_relaxed);
}

}  // namespace mlxhog
