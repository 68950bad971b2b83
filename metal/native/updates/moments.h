// Directions of optimizers: one pass over the gradient and the moments, element by element.
//
// A direction u is written by `mlxhog_delta` and an add (elements.h). s is the gradient times rates[0]; the other rates
// of each kernel stand below. Moments are private to a worker, or of all workers under the lock of their parameter.
// Every operation is rounded separately, so all SIMD widths give the same bits.
#pragma once

#include <cstddef>
#include <string_view>

namespace mlxhog {

inline constexpr std::size_t kMaxMoments = 4, kMaxRates = 12;

using Direction = void(const float* g, const float* w, float* const* moments, float* u, std::size_t n,
                       const float* rates);

struct Kernel {
  std::string_view name;
  std::size_t moments, rates;
  bool means;  // its moments are the means of s, s * s, .. with decays rates[1], rates[3] and 1 - decay behind each
  Direction* run;
};

extern "C" {
// momentum, nesterov, weight_decay: d = s + weight_decay w, m = momentum m + d, u = nesterov ? d + momentum m : m
Direction mlxhog_momentum;
// beta1, 1 - beta1, beta2, 1 - beta2, rsqrt_bias2, eps: the means m and v of s and s^2, u = m / (sqrt(v) rsqrt_bias2 +
// eps)
Direction mlxhog_adam;
// beta1, 1 - beta1, beta2, 1 - beta2: u = sign(beta1 m + (1 - beta1) s); then m is the mean of s with decay beta2
Direction mlxhog_lion;
// beta1, 1 - beta1, beta2, 1 - beta2, beta3, 1 - beta3, step, diff_step, rsqrt_bias2, eps, first: with d = s - prev, or
// 0 where `first`, the means m, diff and v of s, d and (s + beta3 d)^2; prev = s; u = (step m + diff_step diff) /
// (sqrt(v) rsqrt_bias2 + eps)
Direction mlxhog_adan;
// beta, 1 - beta, nesterov, 1 - nesterov: the mean m of s, u = (1 - nesterov) m + nesterov s
Direction mlxhog_mean;
}

inline constexpr Kernel kKernels[] = {
    {"momentum", 1, 4, false, mlxhog_momentum}, {"adam", 2, 7, true, mlxhog_adam}, {"lion", 1, 5, false, mlxhog_lion},
    {"adan", 4, 12, false, mlxhog_adan},        {"mean", 1, 5, true, mlxhog_mean},
};

}  // namespace mlxhog
