// Adds for tests of the shim: an atomic one, and one that loses updates.
#ifndef MLXHOG_TEST_COUNTING_H
#define MLXHOG_TEST_COUNTING_H

#include <metal_stdlib>
using namespace metal;

#include "../../../../metal/kernels/race_point.h"

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
  RACE_POINT();
  *at = old + step;
  if (i == 0) done[0] = 1;
}

// Adds step to both halves of a word by compare-exchange on its bits. failures[0] counts threads that
// gave up after 64 tries, failures[1] exchanges that failed although the word was as expected.
inline void pair_count(const device uint* shared, float step, uint words, const device uint* failures,
                       device uint* done, uint i) {
  device atomic_uint* at = (device atomic_uint*)shared + i % words;
  device atomic_uint* gave_up = (device atomic_uint*)failures;
  if (i == 0) done[0] = 1;
  uint old = atomic_load_explicit(at, memory_order_relaxed);
  for (uint attempt = 0; attempt < 64; ++attempt) {
    uint expected = old;
    half2 now = as_type<half2>(old);
    half2 sum = half2(half(float(now.x) + step), half(float(now.y) + step));
    if (atomic_compare_exchange_weak_explicit(at, &old, as_type<uint>(sum), memory_order_relaxed,
                                              memory_order_relaxed)) {
      return;
    }
    if (old == expected) atomic_fetch_add_explicit(gave_up + 1, 1u, memory_order_relaxed);
  }
  atomic_fetch_add_explicit(gave_up, 1u, memory_order_relaxed);
}

}  // namespace mlxhog

#endif
