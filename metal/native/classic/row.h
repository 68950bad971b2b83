// SIMD on one shared row: a multiple of 16 floats, 64-byte steps.
//
// The same rules as updates/elements.h: each element is loaded once and stored once per pass, and an aligned
// element is never torn, whatever the width of the move. With MLXHOG_ATOMIC_KERNELS every access is a relaxed
// atomic, which is defined behaviour between threads as well; the bits are the same.
#pragma once

#include <cstddef>

#include "../updates/element_access.h"

namespace mlxhog::classic {

inline constexpr std::size_t kRowStep = 16;

#if defined(__x86_64__)
inline constexpr std::size_t kVector = 8;
#else
inline constexpr std::size_t kVector = 4;
#endif

// Passed by reference only: the ABI of a vector by value differs between clones.
using Vector = float __attribute__((vector_size(kVector * sizeof(float))));

MLXHOG_INLINE void load_row(Vector& x, const float* shared) {
#if MLXHOG_ATOMIC_KERNELS
  for (std::size_t i = 0; i < kVector; ++i) x[i] = element::load(shared + i);
#else
  __builtin_memcpy(&x, shared, sizeof x);  // of constant size: one move
#endif
}

MLXHOG_INLINE void store_row(float* shared, const Vector& x) {
#if MLXHOG_ATOMIC_KERNELS
  for (std::size_t i = 0; i < kVector; ++i) element::store(shared + i, x[i]);
#else
  __builtin_memcpy(shared, &x, sizeof x);
#endif
}

// The same for a private row, which needs no atomics.
MLXHOG_INLINE void recall(Vector& x, const float* mine) { __builtin_memcpy(&x, mine, sizeof x); }
MLXHOG_INLINE void keep(float* mine, const Vector& x) { __builtin_memcpy(mine, &x, sizeof x); }

// The sum of 16 partial sums, halved: 16 -> 8 -> 4 -> 2 -> 1, whatever the machine's vectors are.
struct PartialSums {
  static constexpr std::size_t kCount = kRowStep / kVector;
  Vector of[kCount] = {};

  MLXHOG_INLINE float total() {
    for (std::size_t half = kCount / 2; half > 0; half /= 2) {
      for (std::size_t i = 0; i < half; ++i) of[i] += of[i + half];
    }
    const Vector& v = of[0];
#if defined(__x86_64__)
    const auto four = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
    const auto four = v;
#endif
    const auto two = four + __builtin_shufflevector(four, four, 2, 3, 2, 3);
    return two[0] + two[1];
  }
};

}  // namespace mlxhog::classic
