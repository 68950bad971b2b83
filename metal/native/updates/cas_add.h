// Compare-and-swap on shared float32 elements: lossless without locks, 7 to 60 times slower than SIMD.
//
// Correct also beside other 32-bit atomic adders (a GPU kernel), never beside SIMD writers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxhog {

// Floats of one compare-and-swap: one outside x86-64, where mixing widths on the same bytes has no architectural
// promise.
#if defined(__x86_64__)
inline constexpr int kWidestCas = 2;
#else
inline constexpr int kWidestCas = 1;
#endif

// *p = update(*p), and no update of others is lost; returns the new value. Relaxed: every element is a sum of its own,
// and nothing else is published through it.
template <class Update>
inline float update_by_cas(float* p, Update update) {
  float seen, next;
  __atomic_load(p, &seen, __ATOMIC_RELAXED);
  do {
    next = update(seen);
  } while (!__atomic_compare_exchange(p, &seen, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return next;
}

// w += d by `width` floats (1 or 2) at a time; ragged ends go one by one.
void cas_add(float* w, const float* d, std::size_t n, int width = kWidestCas);

// w[index[i]] += d[i], one float at a time; the indices are distinct.
void cas_add_at(float* w, const std::int32_t* index, const float* d, std::size_t n);

// mean = beta * mean + one_minus_beta * x, element by element; the new values go to `out`.
void cas_mean(float* mean, const float* x, float* out, std::size_t n, float beta, float one_minus_beta);

}  // namespace mlxhog
