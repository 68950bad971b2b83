// Functions of a simd-group: 32 threads, fewer in the last of a ragged group. Every thread shows its
// value to the others; those that do not exist contribute nothing.
#pragma once

#include "shim/runtime.h"
#include "shim/types.h"

namespace metal {

#define MLXHOG_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// In the order of lanes, which a GPU does not promise.
#define MLXHOG_REDUCTION(NAME, COMBINE)                                              \
  template <typename T>                                                              \
  T NAME(T value, MLXHOG_HERE) {                                                     \
    auto lanes = metal_host::shown(value, {#NAME, file, line});                      \
    T a = lanes[0];                                                                  \
    for (uint lane = 1; lane < lanes.n; ++lane) {                                    \
      T b = lanes[lane];                                                             \
      a = COMBINE;                                                                   \
    }                                                                                \
    return a;                                                                        \
  }
MLXHOG_REDUCTION(simd_sum, a + b)
MLXHOG_REDUCTION(simd_product, a * b)
MLXHOG_REDUCTION(simd_min, b < a ? b : a)
MLXHOG_REDUCTION(simd_max, a < b ? b : a)
#undef MLXHOG_REDUCTION

template <typename T>
T simd_prefix_inclusive_sum(T value, MLXHOG_HERE) {
  auto lanes = metal_host::shown(value, {"simd_prefix_inclusive_sum", file, line});
  T sum = lanes[0];
  for (uint lane = 1; lane <= lanes.self; ++lane) sum = sum + lanes[lane];
  return sum;
}

template <typename T>
T simd_prefix_exclusive_sum(T value, MLXHOG_HERE) {
  auto lanes = metal_host::shown(value, {"simd_prefix_exclusive_sum", file, line});
  T sum = T(0);
  for (uint lane = 0; lane < lanes.self; ++lane) sum = sum + lanes[lane];
  return sum;
}

template <typename T>
T simd_broadcast(T value, ushort from, MLXHOG_HERE) {
  return metal_host::shown(value, {"simd_broadcast", file, line}).at(from);
}

template <typename T>
T simd_broadcast_first(T value, MLXHOG_HERE) {
  return metal_host::shown(value, {"simd_broadcast_first", file, line})[0];
}

template <typename T>
T simd_shuffle(T value, ushort from, MLXHOG_HERE) {
  return metal_host::shown(value, {"simd_shuffle", file, line}).at(from);
}

template <typename T>
T simd_shuffle_xor(T value, ushort mask, MLXHOG_HERE) {
  auto lanes = metal_host::shown(value, {"simd_shuffle_xor", file, line});
  return lanes.at(lanes.self ^ mask);
}

// The last (first) lanes keep their own values: nothing wraps.
template <typename T>
T simd_shuffle_down(T value, ushort delta, MLXHOG_HERE) {
  auto lanes = metal_host::shown(value, {"simd_shuffle_down", file, line});
  return lanes.self + delta < metal_host::simd_width ? lanes.at(lanes.self + delta) : value;
}

template <typename T>
T simd_shuffle_up(T value, ushort delta, MLXHOG_HERE) {
  auto lanes = metal_host::shown(value, {"simd_shuffle_up", file, line});
  return lanes.self >= delta ? lanes.at(lanes.self - delta) : value;
}

inline bool simd_all(bool value, MLXHOG_HERE) {
  auto lanes = metal_host::shown(value, {"simd_all", file, line});
  bool all = true;
  for (uint lane = 0; lane < lanes.n; ++lane) all = all && lanes[lane];
  return all;
}

inline bool simd_any(bool value, MLXHOG_HERE) {
  auto lanes = metal_host::shown(value, {"simd_any", file, line});
  bool any = false;
  for (uint lane = 0; lane < lanes.n; ++lane) any = any || lanes[lane];
  return any;
}

#undef MLXHOG_HERE

}  // namespace metal
