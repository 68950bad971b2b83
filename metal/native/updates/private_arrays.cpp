#include "private_arrays.h"

#include "simd.h"

namespace mlxhog {

MLXHOG_SIMD double sum_of_squares(const float* g, std::size_t n) {
  constexpr std::size_t kLanes = 16;  // independent chains, so the loop vectorises without reassociation
  double lane[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const double x = g[i + j];
      lane[j] += x * x;
    }
  }
  for (std::size_t j = 0; i < n; ++i, ++j) {
    const double x = g[i];
    lane[j] += x * x;
  }
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) lane[j] += lane[j + half];
  }
  return lane[0];
}

MLXHOG_SIMD void sum_rows(const std::int32_t* target, const float* values, float* out, std::size_t rows,
                          std::size_t width) {
  for (std::size_t k = 0; k < rows; ++k) {
    float* to = out + static_cast<std::size_t>(target[k]) * width;
    const float* from = values + k * width;
    for (std::size_t j = 0; j < width; ++j) to[j] += from[j];
  }
}

}  // namespace mlxhog
