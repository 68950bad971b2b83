// Kernels on a worker's own gradients: no other process sees these arrays.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxhog {

// Sum of squares in float64, in an order that depends on n only. NaN and infinity propagate, and finite
// floats cannot overflow it: the result is finite exactly when every element is.
double sum_of_squares(const float* g, std::size_t n);

// out[target[k]] += values[k] for rows of `width` floats, in order of k.
void sum_rows(const std::int32_t* target, const float* values, float* out, std::size_t rows, std::size_t width);

}  // namespace mlxhog
