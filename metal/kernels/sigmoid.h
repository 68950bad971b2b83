// Sigmoids of gates, accurate where they are nearly 0 or 1.
#pragma once

#include <metal_stdlib>

using namespace metal;

namespace mlxhog {

inline float sigmoid(float x) { return 1.0f / (1.0f + precise::exp(-x)); }

// log(1 + x) to the last digits for x in [0, 1], which Metal's library lacks: log(sum) / (sum - 1) varies so little
// that the rounding of the sum does no harm. Source: Kahan, see Goldberg 1991, theorem 4.
inline float log_one_plus(float x) {
  const float sum = 1.0f + x;
  return sum == 1.0f ? x : precise::log(sum) * (x / (sum - 1.0f));
}

inline float log_sigmoid(float x) { return min(x, 0.0f) - log_one_plus(precise::exp(-fabs(x))); }

}  // namespace mlxhog
