// Control words: 32- and 64-bit atomics on memory that several processes map.
//
// Lock-free atomics are address-free, so they work between processes that map the same pages at
// different addresses. Builtins instead of std::atomic_ref, which Apple clang 16 lacks.
#pragma once

#include <cstdint>
#include <cstring>

namespace mlxhog {

static_assert(__atomic_always_lock_free(4, nullptr), "32-bit atomics have to be lock-free");
static_assert(__atomic_always_lock_free(8, nullptr), "64-bit atomics have to be lock-free");

// Acquire: whatever was written before the store that this load reads is visible afterwards.
template <typename Word>
inline Word load(const Word* word) {
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

// Release: publishes everything written before it.
template <typename Word>
inline void store(Word* word, Word value) {
  __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

// Wraps around modulo 2^bits; returns the old value. Acquire and release, so that a counter can
// also serve as a barrier between those who add to it.
template <typename Word>
inline Word add(Word* word, Word value) {
  return __atomic_fetch_add(word, value, __ATOMIC_ACQ_REL);
}

// Strong compare-and-swap; a failure has read the word with acquire order.
template <typename Word>
inline bool cas(Word* word, Word expected, Word desired) {
  return __atomic_compare_exchange_n(word, &expected, desired, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE);
}

// Raises a word that only grows to at least `value`.
template <typename Word>
inline void raise(Word* word, Word value) {
  for (Word now = load(word); now < value; now = load(word)) {
    if (cas(word, now, value)) return;
  }
}

}  // namespace mlxhog
