#include "dense.h"

#include "../updates/simd.h"

using namespace mlxhog::element;

extern "C" {

MLXHOG_SIMD float mlxhog_dense_dot(const float* __restrict x, const float* __restrict z, std::size_t n) {
  constexpr std::size_t kLanes = 32;
  float sum[kLanes] = {};
  const LoopFence fence;
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::size_t j = 0; j < kLanes; ++j) sum[j] += z[i + j] * load(x + i + j);
  for (std::size_t j = 0; i < n; ++i, ++j) sum[j] += z[i] * load(x + i);
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

MLXHOG_SIMD void mlxhog_dense_collect(float* __restrict g, const float* __restrict z, float c, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) g[i] += c * z[i];
}

MLXHOG_SIMD void mlxhog_dense_subtract(float* __restrict x, const float* __restrict g, float step, std::size_t n) {
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) store(x + i, load(x + i) - step * g[i]);
}

MLXHOG_SIMD void mlxhog_dense_merge(float* __restrict x, float* __restrict mine, float* __restrict base,
                                    std::size_t n) {
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) {
    const float shared = load(x + i), own = mine[i], old = base[i];
    const float sum = shared + (own - old), next = shared == old ? own : sum;
    store(x + i, next);
    mine[i] = next;
    base[i] = next;
  }
}

}  // extern "C"
