// Built as elements.cpp is; see CMakeLists.txt.
#include "moments.h"

#include <cmath>

#include "simd.h"

using namespace mlxhog::element;

extern "C" {

MLXHOG_SIMD void mlxhog_momentum(const float* __restrict g, const float* __restrict w, float* const* moments,
                                 float* __restrict u, std::size_t n, const float* rates) {
  float* __restrict m = moments[0];
  const float scale = rates[0], momentum = rates[1], weight_decay = rates[3];
  const bool nesterov = rates[2] != 0.0f;
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) {
    const float d = scale * g[i] + weight_decay * load(w + i);
    const float mean = momentum * m[i] + d;
    m[i] = mean;
    u[i] = nesterov ? d + momentum * mean : mean;
  }
}

MLXHOG_SIMD void mlxhog_adam(const float* __restrict g, const float*, float* const* moments, float* __restrict u,
                             std::size_t n, const float* rates) {
  float *__restrict m = moments[0], *__restrict v = moments[1];
  const float scale = rates[0], beta1 = rates[1], one_minus_beta1 = rates[2], beta2 = rates[3];
  const float one_minus_beta2 = rates[4], rsqrt_bias2 = rates[5], eps = rates[6];
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) {
    const float s = scale * g[i];
    const float mean = beta1 * load(m + i) + one_minus_beta1 * s;
    const float square = beta2 * load(v + i) + one_minus_beta2 * (s * s);
    store(m + i, mean);
    store(v + i, square);
    u[i] = mean / (std::sqrt(square) * rsqrt_bias2 + eps);
  }
}

MLXHOG_SIMD void mlxhog_lion(const float* __restrict g, const float*, float* const* moments, float* __restrict u,
                             std::size_t n, const float* rates) {
  float* __restrict m = moments[0];
  const float scale = rates[0], beta1 = rates[1], one_minus_beta1 = rates[2], beta2 = rates[3];
  const float one_minus_beta2 = rates[4];
  for (std::size_t i = 0; i < n; ++i) {
    const float s = scale * g[i];
    const float c = beta1 * m[i] + one_minus_beta1 * s;
    m[i] = beta2 * m[i] + one_minus_beta2 * s;
    u[i] = (c > 0.0f ? 1.0f : 0.0f) - (c < 0.0f ? 1.0f : 0.0f);
  }
}

MLXHOG_SIMD void mlxhog_adan(const float* __restrict g, const float*, float* const* moments, float* __restrict u,
                             std::size_t n, const float* rates) {
  float *__restrict m = moments[0], *__restrict diff = moments[1], *__restrict v = moments[2];
  float* __restrict prev = moments[3];
  const float scale = rates[0], beta1 = rates[1], one_minus_beta1 = rates[2], beta2 = rates[3];
  const float one_minus_beta2 = rates[4], beta3 = rates[5], one_minus_beta3 = rates[6], step = rates[7];
  const float diff_step = rates[8], rsqrt_bias2 = rates[9], eps = rates[10];
  const bool first = rates[11] != 0.0f;
  for (std::size_t i = 0; i < n; ++i) {
    const float s = scale * g[i];
    const float d = s - (first ? s : prev[i]);
    const float mean = beta1 * m[i] + one_minus_beta1 * s;
    const float change = beta3 * diff[i] + one_minus_beta3 * d;
    const float ahead = s + beta3 * d;
    const float square = beta2 * v[i] + one_minus_beta2 * (ahead * ahead);
    m[i] = mean;
    diff[i] = change;
    v[i] = square;
    prev[i] = s;
    u[i] = (step * mean + diff_step * change) / (std::sqrt(square) * rsqrt_bias2 + eps);
  }
}

MLXHOG_SIMD void mlxhog_mean(const float* __restrict g, const float*, float* const* moments, float* __restrict u,
                             std::size_t n, const float* rates) {
  float* __restrict m = moments[0];
  const float scale = rates[0], beta = rates[1], one_minus_beta = rates[2], nesterov = rates[3];
  const float one_minus_nesterov = rates[4];
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) {
    const float s = scale * g[i];
    const float mean = beta * load(m + i) + one_minus_beta * s;
    store(m + i, mean);
    u[i] = one_minus_nesterov * mean + nesterov * s;
  }
}

}  // extern "C"
