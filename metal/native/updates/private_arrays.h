// Kernels on a worker's own gradients: no other process sees these arrays.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxhog {

// Sum of squares in float64, in an order that depends on n only. NaN and infinity propagate, and finite
// floats cannot overflow it: the result is finite exactly when every element is.
double sum_of_squares(const float* g, std::size_t n);

// Elements of a longer array that are summed alone; such sums are then added up in their order. So a norm has the same
// bits by any number of threads.
inline constexpr std::size_t kSummed = std::size_t{1} << 18;  // 1 MiB, worth waking a thread

// out[target[k]] += values[k] for rows of `width` floats, in order of k.
void sum_rows(const std::int32_t* target, const float* values, float* out, std::size_t rows, std::size_t width);

}  // namespace mlxhog
