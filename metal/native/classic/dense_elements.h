// SIMD of linear models on runs of x: x is shared, everything else private or read-only.
//
// Concurrency: as in updates/elements.h. Every operation is rounded separately and every sum has a fixed
// order, so all SIMD widths give the same bits.
#pragma once

#include <cstddef>

extern "C" {

// z.x in 32 partial sums, element i in sum i modulo 32, added by halves: sum j += sum j + 16, then 8, 4, 2, 1.
float mlxhog_dense_dot(const float* x, const float* z, std::size_t n);
// g += c * z
void mlxhog_dense_collect(float* g, const float* z, float c, std::size_t n);
// g += (times * shrink) * x
void mlxhog_dense_shrink(float* g, const float* x, const float* shrink, float times, std::size_t n);
// x -= step * g
void mlxhog_dense_subtract(float* x, const float* g, float step, std::size_t n);
// x = x == base ? mine : x + (mine - base); mine = base = x
void mlxhog_dense_merge(float* x, float* mine, float* base, std::size_t n);
}
