// Control words: 32- and 64-bit atomics on memory that several processes map, and seqlock counters.
//
// Lock-free atomics are address-free, so they work between processes that map the same pages at different addresses.
// Builtins instead of std::atomic_ref, which Apple clang 16 lacks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mlxhog {

static_assert(__atomic_always_lock_free(4, nullptr), "32-bit atomics have to be lock-free");
static_assert(__atomic_always_lock_free(8, nullptr), "64-bit atomics have to be lock-free");

// Acquire: all writes before the store that this load reads are visible afterwards.
template <typename Word>
inline Word load(const Word* word) {
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

// Release: publishes everything written before it.
template <typename Word>
inline void store(Word* word, Word value) {
  __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

// Wraps around modulo 2^bits; returns the old value. Acquire and release, so that a counter can also serve as a barrier
// between processes that add to it.
template <typename Word>
inline Word add(Word* word, Word value) {
  return __atomic_fetch_add(word, value, __ATOMIC_ACQ_REL);
}

// Strong compare-and-swap; a failure has read the word with acquire order.
template <typename Word>
inline bool cas(Word* word, Word expected, Word desired) {
  return __atomic_compare_exchange_n(word, &expected, desired, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

// Raises a word that only grows to at least `value`.
template <typename Word>
inline void raise(Word* word, Word value) {
  for (Word now = load(word); now < value; now = load(word))
    if (cas(word, now, value)) return;
}

// One turn of a spin loop.
inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // `yield` is a no-op on most ARM cores; isb costs a few dozen cycles
#endif
}

// Seqlock counters show readers without a lock whether memory was written while they copied it. A counter has one
// writer, and is odd while that writer writes. Source: Boehm 2012, Can Seqlocks Get Along with Programming Language
// Memory Models?

// Makes a counter odd; an odd one stays odd, so the next writer after a death continues with it.
inline void begin_writing(std::uint64_t* counter) {
  __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) | 1, __ATOMIC_RELAXED);
  // Release: a process that sees a write after this fence also sees the odd counter.
  __atomic_thread_fence(__ATOMIC_RELEASE);
}

// Makes a counter even, and greater than before. Release: publishes the writes.
inline void end_writing(std::uint64_t* counter) {
  const std::uint64_t now = __atomic_load_n(counter, __ATOMIC_RELAXED);
  store(counter, now + (now & 1));
}

// Whether `n` counters, `stride` words apart, are all even, and their sum, which grows with every write. A copy is
// consistent if this was true before it, with the same sum after it.
inline bool nobody_writes(const std::uint64_t* counters, std::size_t stride, std::size_t n, std::uint64_t* sum) {
  // Acquire: the copy before this call is not read later than the counters.
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  *sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t counter = load(counters + i * stride);
    if (counter & 1) return false;
    *sum += counter;
  }
  return true;
}

}  // namespace mlxhog
