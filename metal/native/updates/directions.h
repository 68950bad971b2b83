// Directions of optimizers with private state: one pass over the gradient and the state.
//
// A direction u is written later, as plain SGD writes a gradient: w -= lr * (u + weight_decay * w). All memory here
// belongs to one worker. Every operation is rounded separately, so all SIMD widths give the same bits. s is
// grad_scale * g; rates are rounded once from double precision.
#pragma once

#include <cstddef>

namespace mlxhog {

struct AdamDirectionRates {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, factor, grad_scale;
};

struct LionRates {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, grad_scale;
};

// step = 1 / bias1, diff_step = beta3 / bias3, rsqrt_bias2 = 1 / sqrt(bias2).
struct AdanRates {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3, step, diff_step, rsqrt_bias2, eps,
      grad_scale;
  bool first;  // there is no gradient before this one
};

extern "C" {

// m and v are the exponential means of s and s * s; u = factor * (m / (sqrt(v) + eps)).
void mlxhog_adam_direction(const float* g, float* m, float* v, float* u, std::size_t n,
                           const mlxhog::AdamDirectionRates* rates);
// u = sign(beta1 * m + (1 - beta1) * s); then m is the exponential mean of s with decay beta2.
void mlxhog_lion_direction(const float* g, float* m, float* u, std::size_t n, const mlxhog::LionRates* rates);
// d = s - prev, or 0 for the first gradient; m, diff and v are the exponential means of s, d and (s + beta3 * d)^2;
// u = (step * m + diff_step * diff) / (sqrt(v) * rsqrt_bias2 + eps); then prev = s.
void mlxhog_adan_direction(const float* g, float* m, float* diff, float* v, float* prev, float* u, std::size_t n,
                           const mlxhog::AdanRates* rates);
}

}  // namespace mlxhog
