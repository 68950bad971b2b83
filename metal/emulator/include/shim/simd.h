// Barriers, and the functions of a simdgroup that our kernels use: 32 threads, fewer in the last of a ragged threadgroup.
#pragma once

#include "shim/runtime.h"
#include "shim/types.h"

namespace metal {

// The caller's place in the source: a barrier opens only when all threads wait at the same one.
#define MLXHOG_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// Of which memory the writes before a barrier are seen behind it, see `runtime/accesses.h`.
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };

constexpr mem_flags operator|(mem_flags a, mem_flags b) { return static_cast<mem_flags>(uint(a) | uint(b)); }

inline void threadgroup_barrier(mem_flags flags, MLXHOG_HERE) {
  metal_emulator::wait_for_threadgroup({"threadgroup_barrier", file, line}, uint(flags));
}

inline void simdgroup_barrier(mem_flags flags, MLXHOG_HERE) {
  metal_emulator::wait_for_simdgroup({"simdgroup_barrier", file, line}, uint(flags));
}

// Every thread publishes its value to the others; those that do not exist contribute nothing. In the order of lanes,
// which a GPU does not promise.
#define MLXHOG_REDUCTION(NAME, LAST, COMBINE)                                             \
  template <typename T>                                                                   \
  T NAME(T value, MLXHOG_HERE) {                                                          \
    const auto lanes = metal_emulator::published(value, {#NAME, file, line});             \
    T a = lanes[0];                                                                       \
    for (uint lane = 1; lane <= LAST; ++lane) {                                           \
      const T b = lanes[lane];                                                            \
      a = COMBINE;                                                                        \
    }                                                                                     \
    return a;                                                                             \
  }
MLXHOG_REDUCTION(simd_sum, lanes.n - 1, a + b)
MLXHOG_REDUCTION(simd_max, lanes.n - 1, a < b ? b : a)
MLXHOG_REDUCTION(simd_prefix_inclusive_sum, lanes.self, a + b)
#undef MLXHOG_REDUCTION
#undef MLXHOG_HERE

}  // namespace metal
