// Relaxed atomics on shared memory that a kernel got as a read-only input.
//
// MLX declares every input const, so memory to write in place is cast here, in one place. Relaxed is the
// only order Metal has, and the right one: every element is an independent sum, and nothing else is
// published through it.
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

inline void count(const device uint* counter, uint more) {
  atomic_fetch_add_explicit((device atomic_uint*)counter, more, memory_order_relaxed);
}

inline uint load_bits(const device uint* word) {
  return atomic_load_explicit((device atomic_uint*)word, memory_order_relaxed);
}

// Compare-and-swap on bits, never on an atomic_float: the latter compares as floats, so that one NaN would
// let a loop run for ever and hang the GPU. A failure puts the bits that were found into `seen`.
inline bool swap_bits(const device uint* word, thread uint& seen, uint next) {
  return atomic_compare_exchange_weak_explicit((device atomic_uint*)word, &seen, next, memory_order_relaxed,
                                               memory_order_relaxed);
}

// Tries of one compare-and-swap loop before it gives up and counts a failure. A loop without a bound could
// keep a GPU busy until its watchdog ends the process.
enum : uint { kTries = 64 };

}  // namespace mlxhog
