// The updates' SIMD code on shared floats: built without link-time optimisation, fused multiply-add, errno
// of sqrt, and loops turned into memcpy (see CMakeLists.txt).
#include "elements.h"

#include "element_access.h"
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
  compiler_barrier();
  for (std::size_t i = 0; i < n; ++i) store(w + i, load(w + i) + d[i]);
  compiler_barrier();
}

__attribute__((noinline)) void mlxhog_add_at(float* __restrict w, const std::int32_t* __restrict index,
                                             const float* __restrict d, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    float* at = w + index[i];
    float x;
    // Relaxed: an increment may be lost where no lock is held; no element is torn.
    __atomic_load(at, &x, __ATOMIC_RELAXED);
    x += d[i];
    __atomic_store(at, &x, __ATOMIC_RELAXED);
  }
  compiler_barrier();
}

MLXHOG_SIMD void mlxhog_copy(float* __restrict dst, const float* __restrict src, std::size_t n) {
  compiler_barrier();
  for (std::size_t i = 0; i < n; ++i) dst[i] = load(src + i);
  compiler_barrier();
}

MLXHOG_SIMD void mlxhog_predict(float* __restrict dst, const float* __restrict src, float* __restrict prev,
                                float coef, std::size_t n) {
  compiler_barrier();
  for (std::size_t i = 0; i < n; ++i) {
    const float now = load(src + i);
    dst[i] = now + coef * (now - prev[i]);
    prev[i] = now;
  }
  compiler_barrier();
}

MLXHOG_SIMD void mlxhog_look_ahead(float* __restrict dst, const float* __restrict src,
                                   const float* __restrict last, const float* __restrict prev, float a, float b,
                                   std::size_t n) {
  compiler_barrier();
  for (std::size_t i = 0; i < n; ++i) dst[i] = load(src + i) + (a * load(last + i) - b * load(prev + i));
  compiler_barrier();
}

MLXHOG_SIMD void mlxhog_record(float* __restrict last, float* __restrict prev, const float* __restrict d,
                               std::size_t n) {
  compiler_barrier();
  for (std::size_t i = 0; i < n; ++i) {
    store(prev + i, load(last + i));
    store(last + i, d[i]);
  }
  compiler_barrier();
}

MLXHOG_SIMD void mlxhog_delta(const float* __restrict w, const float* __restrict u, float* __restrict d, std::size_t n,
                              const float* rates) {
  const Write write{rates[0], rates[1], rates[2], rates[3]};
  compiler_barrier();
  for (std::size_t i = 0; i < n; ++i) d[i] = write.delta(load(w + i), u[i]);
  compiler_barrier();
}

MLXHOG_SIMD void mlxhog_write(float* __restrict w, const float* __restrict u, std::size_t n, const float* rates) {
  const Write write{rates[0], rates[1], rates[2], rates[3]};
  compiler_barrier();
  for (std::size_t i = 0; i < n; ++i) {
    const float old = load(w + i);
    store(w + i, old + write.delta(old, u[i]));
  }
  compiler_barrier();
}

}  // extern "C"
