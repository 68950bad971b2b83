// Vectorized loops over shared floats: several SIMD widths of one function, and the access to an element.
//
// Only for loops whose operations are each correctly rounded and never fused: then every width gives the same bits.
// Files that use `element` are built with the element options of CMakeLists.txt.
#pragma once

#include <cstdint>  // any standard header tells whether this is glibc, which the loader's choice needs

// The loader picks the widest clone that the CPU has. No clones beside a sanitizer, whose runtime is not up by then.
#if defined(__x86_64__) && defined(__GLIBC__) && !MLXHOG_ATOMIC_KERNELS && !defined(__SANITIZE_THREAD__)
#if defined(__clang__)
#define MLXHOG_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))  // never inlined anyway
#else
#define MLXHOG_SIMD __attribute__((noinline, target_clones("avx512f", "avx2", "default")))
#endif
#else
#define MLXHOG_SIMD __attribute__((noinline))
#endif

// For a whole loop made of small functions: all of them become part of each clone. Clang combines no clones
// with that, and compiles for the base instruction set.
#if defined(__clang__)
#define MLXHOG_WHOLE_LOOP __attribute__((noinline, flatten))
#else
#define MLXHOG_WHOLE_LOOP MLXHOG_SIMD __attribute__((flatten))
#endif

#define MLXHOG_INLINE inline __attribute__((always_inline))

namespace mlxhog::element {

#if MLXHOG_ATOMIC_KERNELS
// Relaxed: lost increments and mixed ages are the contract, torn floats and undefined behavior are not.
MLXHOG_INLINE float load(const float* p) {
  float x;
  __atomic_load(p, &x, __ATOMIC_RELAXED);
  return x;
}
MLXHOG_INLINE void store(float* p, float x) { __atomic_store(p, &x, __ATOMIC_RELAXED); }
#else
// Plain accesses, so that the loops vectorize: no other thread of this process has these elements, and a vector access is
// single-copy atomic per aligned 4-byte lane.
MLXHOG_INLINE float load(const float* p) { return *p; }
MLXHOG_INLINE void store(float* p, float x) { *p = x; }
#endif

// Nothing of a loop in its scope may move across the lock and unlock around the call.
struct LoopFence {
  MLXHOG_INLINE LoopFence() { asm volatile("" ::: "memory"); }
  MLXHOG_INLINE ~LoopFence() { asm volatile("" ::: "memory"); }
};

}  // namespace mlxhog::element
