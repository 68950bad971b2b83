// Access to shared floats inside vectorised loops: only for translation units that CMakeLists.txt builds with
// the element options (no link-time optimisation, no loops turned into memcpy).
#pragma once

#define MLXHOG_INLINE inline __attribute__((always_inline))

namespace mlxhog::element {

#if MLXHOG_ATOMIC_KERNELS
// Relaxed: lost increments and mixed ages are the contract, torn floats and undefined behaviour are not.
MLXHOG_INLINE float load(const float* p) {
  float x;
  __atomic_load(p, &x, __ATOMIC_RELAXED);
  return x;
}
MLXHOG_INLINE void store(float* p, float x) { __atomic_store(p, &x, __ATOMIC_RELAXED); }
#else
// Plain accesses, so that the loops vectorise. No other thread of this program accesses these elements meanwhile
// (one worker is one process, and its threads share none); a vector access is single-copy atomic per aligned 4-byte
// lane.
MLXHOG_INLINE float load(const float* p) { return *p; }
MLXHOG_INLINE void store(float* p, float x) { *p = x; }
#endif

// Nothing of the loop may move across the lock and unlock around the call.
MLXHOG_INLINE void compiler_barrier() { asm volatile("" ::: "memory"); }

}  // namespace mlxhog::element
