// Element-wise kernels on shared float32 arrays, with SIMD and without locks.
//
// Concurrency: another process may read or write the shared arrays (w, src, last, prev) meanwhile. Elements never tear:
// each is one aligned 4-byte unit, also inside vector instructions. Without a lock around the call, simultaneous
// increments of one element may be lost. Every kernel loads and stores each shared element once, rounds every operation
// separately, and so gives the same bits in every SIMD width. MLXHOG_ATOMIC_KERNELS=1 makes every access to a shared
// element a relaxed atomic: defined behavior between threads (thread sanitizer), the same bits, several times slower.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxhog {

extern "C" {

// w += d
void mlxhog_add(float* w, const float* d, std::size_t n);
// w[index[i]] += d[i]; the indices are distinct. Relaxed accesses in every build: scattered elements gain nothing from
// SIMD, so lost increments are the whole contract and undefined behavior is not part of it.
void mlxhog_add_at(float* w, const std::int32_t* index, const float* d, std::size_t n);
// dst = src
void mlxhog_copy(float* dst, const float* src, std::size_t n);
// dst = src + coef * (src - prev); prev = src
void mlxhog_predict(float* dst, const float* src, float* prev, float coef, std::size_t n);
// dst = src + (a * last - b * prev)
void mlxhog_extrapolate(float* dst, const float* src, const float* last, const float* prev, float a, float b,
                       std::size_t n);
// prev = last; last = d
void mlxhog_record(float* last, float* prev, const float* d, std::size_t n);

// The step that a direction u makes: d = -(lr * (scale * u + coupled * w) + decoupled * w), rates in this order.
void mlxhog_delta(const float* w, const float* u, float* d, std::size_t n, const float* rates);
// w += d, in one pass
void mlxhog_write(float* w, const float* u, std::size_t n, const float* rates);
}

// -- a worker's own gradients, which no other process sees

// Sum of squares in float64, in an order that depends on n only. NaN and infinity propagate, and finite
// floats cannot overflow it: the result is finite exactly when every element is.
double sum_of_squares(const float* g, std::size_t n);

// Elements of a longer array that are summed alone; such sums are then added up in their order. So a norm has the same
// bits by any number of threads.
inline constexpr std::size_t kSummed = std::size_t{1} << 18;  // 1 MiB, worth waking a thread

// out[target[k]] += values[k] for rows of `width` floats, in order of k.
void sum_rows(const std::int32_t* target, const float* values, float* out, std::size_t rows, std::size_t width);

}  // namespace mlxhog
