// Functions of a simdgroup that our kernels use: 32 threads, fewer in the last of a ragged threadgroup. Every thread
// publishes its value to the others; those that do not exist contribute nothing.
#pragma once

#include "shim/runtime.h"
#include "shim/types.h"

namespace metal {

#define MLXHOG_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// In the order of lanes, which a GPU does not promise.
#define MLXHOG_REDUCTION(NAME, LAST, COMBINE)                     \
  template <typename T>                                           \
  T NAME(T value, MLXHOG_HERE) {                                  \
    auto lanes = metal_emulator::published(value, {#NAME, file, line});   \
    T a = lanes[0];                                               \
    for (uint lane = 1; lane <= LAST; ++lane) {                   \
      T b = lanes[lane];                                          \
      a = COMBINE;                                                \
    }                                                             \
    return a;                                                     \
  }
MLXHOG_REDUCTION(simd_sum, lanes.n - 1, a + b)
MLXHOG_REDUCTION(simd_max, lanes.n - 1, a < b ? b : a)
MLXHOG_REDUCTION(simd_prefix_inclusive_sum, lanes.self, a + b)
#undef MLXHOG_REDUCTION
#undef MLXHOG_HERE

}  // namespace metal
