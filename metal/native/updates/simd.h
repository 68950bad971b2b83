// Compile one function for several SIMD widths; the loader picks the widest that the CPU has.
#pragma once

#include <cstdint>  // any standard header tells whether this is glibc, which the loader's choice needs

// Only for loops whose operations are each correctly rounded and never fused: then every clone gives the
// same bits. No clones beside a sanitizer, whose runtime is not up when the loader chooses one.
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
