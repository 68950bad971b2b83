// Sixteen floats as one value, for kernels that keep rows of a state in registers: one AVX-512 register, two of AVX,
// four of NEON. Only for functions that are inlined into one with MLXHOG_CLONES.
#pragma once

#include "simd.h"

namespace mlxhog {

inline constexpr Index kLaneCount = 16;
using Lanes = float __attribute__((vector_size(sizeof(float) * kLaneCount)));

inline Index whole_lanes(Index count) { return (count + kLaneCount - 1) / kLaneCount * kLaneCount; }

MLXHOG_INLINE void load(const float* from, Lanes& to) { __builtin_memcpy(&to, from, sizeof(Lanes)); }
MLXHOG_INLINE void store(const Lanes& from, float* to) { __builtin_memcpy(to, &from, sizeof(Lanes)); }

}  // namespace mlxhog
