// Element-wise kernels on shared float32 arrays, with SIMD and without locks.
//
// Concurrency: another process may read or write the shared arrays meanwhile. Elements never tear (each is
// one aligned 4-byte unit, also inside vector instructions); without a lock around the call, simultaneous
// increments of one element may be lost. Shared: `w`, `src`, `last`, `prev` of the steps, and `m` and `v` where
// an optimizer shares them.
// Every kernel loads each shared element once and stores it once, rounds every operation separately, and so
// gives the same bits in every SIMD width.
//
// MLXHOG_ATOMIC_KERNELS=1 makes every access to a shared element a relaxed atomic: defined behaviour for
// threads of one process (thread sanitizer), the same bits, several times slower.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxhog {

extern "C" {

// w += d
void mlxhog_add(float* w, const float* d, std::size_t n);
// w[index[i]] += d[i]; the indices are distinct. Relaxed accesses in every build: scattered elements gain nothing from
// SIMD, so lost increments are the whole contract and undefined behaviour is not part of it.
void mlxhog_add_at(float* w, const std::int32_t* index, const float* d, std::size_t n);
// dst = src
void mlxhog_copy(float* dst, const float* src, std::size_t n);
// dst = src + coef * (src - prev); prev = src
void mlxhog_predict(float* dst, const float* src, float* prev, float coef, std::size_t n);
// dst = src + (a * last - b * prev)
void mlxhog_look_ahead(float* dst, const float* src, const float* last, const float* prev, float a, float b,
                       std::size_t n);
// prev = last; last = d
void mlxhog_record(float* last, float* prev, const float* d, std::size_t n);

// The steps below read their rates from `hp`, eight floats that metal/kernels/step_rules.py has a table of, and take
// s = grad_scale * g. They write `w += delta` when out is null, else `out = delta` and leave w alone.
// delta = -lr * (s + weight_decay * w)
void mlxhog_sgd(float* w, const float* g, float* out, std::size_t n, const float* hp, float grad_scale);
// d = s + weight_decay * w; m = momentum * m + d; delta = -lr * (nesterov ? d + momentum * m : m)
void mlxhog_momentum(float* w, const float* g, float* m, float* out, std::size_t n, const float* hp, float grad_scale);
// m and v are the exponential means of s and s*s; delta = -(decay * w + step * m / (sqrt(v) * rsqrt_bias2 + eps))
void mlxhog_adamw(float* w, const float* g, float* m, float* v, float* out, std::size_t n, const float* hp,
                  float grad_scale);
// m is the exponential mean of s; x = (1 - nesterov) * m + nesterov * s
void mlxhog_muon_direction(const float* g, float* m, float* x, std::size_t n, const float* hp, float grad_scale);
}

}  // namespace mlxhog
