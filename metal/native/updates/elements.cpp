// The updates' SIMD code on shared floats: built without link-time optimization, fused multiply-add, errno
// of sqrt, and loops turned into memcpy (see CMakeLists.txt).
#include "elements.h"

#include "simd.h"

using namespace mlxhog::element;

namespace {

struct Write {
  float lr, scale, coupled, decoupled;

  MLXHOG_INLINE float delta(float w, float u) const { return -(lr * (scale * u + coupled * w) + decoupled * w); }
};

}  // namespace

extern "C" {

MLXHOG_SIMD void mlxhog_add(float* __restrict w, const float* __restrict d, std::size_t n) {
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) store(w + i, load(w + i) + d[i]);
}

__attribute__((noinline)) void mlxhog_add_at(float* __restrict w, const std::int32_t* __restrict index,
                                             const float* __restrict d, std::size_t n) {
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) {
    float* at = w + index[i];
    float x;
    // Relaxed: an increment may be lost where no lock is held; no element is torn.
    __atomic_load(at, &x, __ATOMIC_RELAXED);
    x += d[i];
    __atomic_store(at, &x, __ATOMIC_RELAXED);
  }
}

MLXHOG_SIMD void mlxhog_copy(float* __restrict dst, const float* __restrict src, std::size_t n) {
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) dst[i] = load(src + i);
}

MLXHOG_SIMD void mlxhog_predict(float* __restrict dst, const float* __restrict src, float* __restrict prev, float coef,
                                std::size_t n) {
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) {
    const float now = load(src + i);
    dst[i] = now + coef * (now - prev[i]);
    prev[i] = now;
  }
}

MLXHOG_SIMD void mlxhog_extrapolate(float* __restrict dst, const float* __restrict src, const float* __restrict last,
                                    const float* __restrict prev, float a, float b, std::size_t n) {
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) dst[i] = load(src + i) + (a * load(last + i) - b * load(prev + i));
}

MLXHOG_SIMD void mlxhog_record(float* __restrict last, float* __restrict prev, const float* __restrict d,
                               std::size_t n) {
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) {
    store(prev + i, load(last + i));
    store(last + i, d[i]);
  }
}

MLXHOG_SIMD void mlxhog_delta(const float* __restrict w, const float* __restrict u, float* __restrict d, std::size_t n,
                              const float* rates) {
  const Write write{rates[0], rates[1], rates[2], rates[3]};
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) d[i] = write.delta(load(w + i), u[i]);
}

MLXHOG_SIMD void mlxhog_write(float* __restrict w, const float* __restrict u, std::size_t n, const float* rates) {
  const Write write{rates[0], rates[1], rates[2], rates[3]};
  const LoopFence fence;
  for (std::size_t i = 0; i < n; ++i) {
    const float old = load(w + i);
    store(w + i, old + write.delta(old, u[i]));
  }
}

}  // extern "C"

namespace mlxhog {

MLXHOG_SIMD double sum_of_squares(const float* g, std::size_t n) {
  constexpr std::size_t kLanes = 16;  // independent chains, so the loop vectorizes without reassociation
  double lane[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::size_t j = 0; j < kLanes; ++j) lane[j] += static_cast<double>(g[i + j]) * g[i + j];
  for (std::size_t j = 0; i < n; ++i, ++j) lane[j] += static_cast<double>(g[i]) * g[i];
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

MLXHOG_SIMD void sum_rows(const std::int32_t* target, const float* values, float* out, std::size_t rows,
                          std::size_t width) {
  for (std::size_t k = 0; k < rows; ++k) {
    float* to = out + static_cast<std::size_t>(target[k]) * width;
    const float* from = values + k * width;
    for (std::size_t j = 0; j < width; ++j) to[j] += from[j];
  }
}

}  // namespace mlxhog
