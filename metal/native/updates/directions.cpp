// Built without fused multiply-add and errno of sqrt; see CMakeLists.txt.
#include "directions.h"

#include <cmath>

#include "simd.h"

extern "C" {

MLXHOG_SIMD void mlxhog_adam_direction(const float* __restrict g, float* __restrict m, float* __restrict v,
                                       float* __restrict u, std::size_t n,
                                       const mlxhog::AdamDirectionRates* rates) {
  const mlxhog::AdamDirectionRates r = *rates;
  for (std::size_t i = 0; i < n; ++i) {
    const float s = r.grad_scale * g[i];
    const float mean = r.beta1 * m[i] + r.one_minus_beta1 * s;
    const float square = r.beta2 * v[i] + r.one_minus_beta2 * (s * s);
    m[i] = mean;
    v[i] = square;
    u[i] = r.factor * (mean / (std::sqrt(square) + r.eps));
  }
}

MLXHOG_SIMD void mlxhog_lion_direction(const float* __restrict g, float* __restrict m, float* __restrict u,
                                       std::size_t n, const mlxhog::LionRates* rates) {
  const mlxhog::LionRates r = *rates;
  for (std::size_t i = 0; i < n; ++i) {
    const float s = r.grad_scale * g[i];
    const float c = r.beta1 * m[i] + r.one_minus_beta1 * s;
    m[i] = r.beta2 * m[i] + r.one_minus_beta2 * s;
    u[i] = (c > 0.0f ? 1.0f : 0.0f) - (c < 0.0f ? 1.0f : 0.0f);
  }
}

MLXHOG_SIMD void mlxhog_adan_direction(const float* __restrict g, float* __restrict m, float* __restrict diff,
                                       float* __restrict v, float* __restrict prev, float* __restrict u,
                                       std::size_t n, const mlxhog::AdanRates* rates) {
  const mlxhog::AdanRates r = *rates;
  for (std::size_t i = 0; i < n; ++i) {
    const float s = r.grad_scale * g[i];
    const float d = s - (r.first ? s : prev[i]);
    const float mean = r.beta1 * m[i] + r.one_minus_beta1 * s;
    const float change = r.beta3 * diff[i] + r.one_minus_beta3 * d;
    const float ahead = s + r.beta3 * d;
    const float square = r.beta2 * v[i] + r.one_minus_beta2 * (ahead * ahead);
    m[i] = mean;
    diff[i] = change;
    v[i] = square;
    prev[i] = s;
    u[i] = (r.step * mean + r.diff_step * change) / (std::sqrt(square) * r.rsqrt_bias2 + r.eps);
  }
}

}  // extern "C"
