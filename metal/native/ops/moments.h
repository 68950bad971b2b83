// Mean and inverse standard deviation of the numbers that a LayerNorm normalises.
#pragma once

#include <cmath>

#include "simd.h"

namespace mlxhog {

struct Moments {
  float mean, scale;
};

MLXHOG_INLINE Moments moments(const float* h, Index width, float eps) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < width; ++j) sum += h[j];
  const float mean = sum / static_cast<float>(width);
#pragma omp simd reduction(+ : squares)
  for (Index j = 0; j < width; ++j) squares += (h[j] - mean) * (h[j] - mean);
  return {mean, 1.0f / std::sqrt(squares / static_cast<float>(width) + eps)};
}

// dh holds the gradient of unit = (h - mean) * scale on entry, that of h on return; sum and dot are those of the
// gradient of unit with 1 and with unit.
MLXHOG_INLINE void through_moments(Moments of, const float* h, Index width, float sum, float dot, float* dh) {
  const float inverse_width = 1.0f / static_cast<float>(width), mean = of.mean, scale = of.scale;
  sum *= inverse_width;
  dot *= inverse_width;
#pragma omp simd
  for (Index j = 0; j < width; ++j) dh[j] = scale * (dh[j] - sum - (h[j] - mean) * scale * dot);
}

}  // namespace mlxhog
