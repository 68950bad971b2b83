// Short rows, one per vector lane: (lanes, width) packed to (width, lanes) and back.
#pragma once

#include "simd.h"

namespace mlxhog {

inline constexpr Index kRowLanes = 32;

// lanes[d, l] = rows[l, d]; rows (32, width) and lanes (width, 32), `spare` as large as either.
void to_lanes(Index width, const float* rows, float* lanes, float* spare);

// rows[l, d] = lanes[d, l], the same back.
void from_lanes(Index width, const float* lanes, float* rows, float* spare);

}  // namespace mlxhog
