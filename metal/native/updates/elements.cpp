// The updates' SIMD code on shared floats: built without link-time optimisation, fused multiply-add, errno
// of sqrt, and loops turned into memcpy (see CMakeLists.txt).
#include "elements.h"

#include <cmath>

#include "element_access.h"
#include "simd.h"

using namespace mlxhog::element;

namespace {

template <bool kAdd>
MLXHOG_INLINE void emit(float* w, float* out, std::size_t i, float old, float delta) {
  if constexpr (kAdd) {
    store(w + i, old + delta);
  } else {
    out[i] = delta;
  }
}

template <bool kAdd>
MLXHOG_INLINE void sgd(float* __restrict w, const float* __restrict g, float* __restrict out, std::size_t n,
                       const float* hp, float grad_scale) {
  const float lr = hp[0], weight_decay = hp[1];
  for (std::size_t i = 0; i < n; ++i) {
    const float old = load(w + i);
    emit<kAdd>(w, out, i, old, -(lr * (grad_scale * g[i] + weight_decay * old)));
  }
}

template <bool kAdd, bool kNesterov>
MLXHOG_INLINE void momentum(float* __restrict w, const float* __restrict g, float* __restrict m,
                            float* __restrict out, std::size_t n, const float* hp, float grad_scale) {
  const float lr = hp[0], weight_decay = hp[1], momentum = hp[2];
  for (std::size_t i = 0; i < n; ++i) {
    const float old = load(w + i);
    const float d = grad_scale * g[i] + weight_decay * old;
    const float mean = momentum * m[i] + d;
    m[i] = mean;
    emit<kAdd>(w, out, i, old, -(lr * (kNesterov ? d + momentum * mean : mean)));
  }
}

template <bool kAdd>
MLXHOG_INLINE void adamw(float* __restrict w, const float* __restrict g, float* __restrict m,
                         float* __restrict v, float* __restrict out, std::size_t n, const float* hp,
                         float grad_scale) {
  const float decay = hp[0], step = hp[1], beta1 = hp[2], one_minus_beta1 = hp[3], beta2 = hp[4];
  const float one_minus_beta2 = hp[5], rsqrt_bias2 = hp[6], eps = hp[7];
  for (std::size_t i = 0; i < n; ++i) {
    const float s = grad_scale * g[i];
    const float mean = beta1 * load(m + i) + one_minus_beta1 * s;
    const float square = beta2 * load(v + i) + one_minus_beta2 * (s * s);
    store(m + i, mean);
    store(v + i, square);
    const float old = load(w + i);
    const float denominator = std::sqrt(square) * rsqrt_bias2 + eps;
    emit<kAdd>(w, out, i, old, -(decay * old + step * (mean / denominator)));
  }
}

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

MLXHOG_SIMD void mlxhog_sgd(float* w, const float* g, float* out, std::size_t n, const float* hp, float grad_scale) {
  compiler_barrier();
  out == nullptr ? sgd<true>(w, g, out, n, hp, grad_scale) : sgd<false>(w, g, out, n, hp, grad_scale);
  compiler_barrier();
}

MLXHOG_SIMD void mlxhog_momentum(float* w, const float* g, float* m, float* out, std::size_t n, const float* hp,
                                 float grad_scale) {
  const bool nesterov = hp[3] != 0.0f;
  compiler_barrier();
  if (out == nullptr) {
    nesterov ? momentum<true, true>(w, g, m, out, n, hp, grad_scale)
             : momentum<true, false>(w, g, m, out, n, hp, grad_scale);
  } else {
    nesterov ? momentum<false, true>(w, g, m, out, n, hp, grad_scale)
             : momentum<false, false>(w, g, m, out, n, hp, grad_scale);
  }
  compiler_barrier();
}

MLXHOG_SIMD void mlxhog_adamw(float* w, const float* g, float* m, float* v, float* out, std::size_t n,
                              const float* hp, float grad_scale) {
  compiler_barrier();
  out == nullptr ? adamw<true>(w, g, m, v, out, n, hp, grad_scale) : adamw<false>(w, g, m, v, out, n, hp, grad_scale);
  compiler_barrier();
}

MLXHOG_SIMD void mlxhog_muon_direction(const float* __restrict g, float* __restrict m, float* __restrict x,
                                       std::size_t n, const float* hp, float grad_scale) {
  compiler_barrier();
  const float beta1 = hp[0], one_minus_beta1 = hp[1], nesterov = hp[2], one_minus_nesterov = hp[3];
  for (std::size_t i = 0; i < n; ++i) {
    const float s = grad_scale * g[i];
    const float mean = beta1 * load(m + i) + one_minus_beta1 * s;
    store(m + i, mean);
    x[i] = one_minus_nesterov * mean + nesterov * s;
  }
  compiler_barrier();
}

}  // extern "C"
