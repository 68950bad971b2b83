// The steps of `steps.h` where a gradient holds only some rows of a parameter, each once: an embedding.
//
// `m` and `v` hold the whole parameter, m_out and v_out the rows of this launch. Other rows keep their state
// as it is. Outputs of a row outside the parameter are undefined; done[k] is 0 there.
#pragma once

#include "rows.h"
#include "steps.h"

namespace mlxhog {

inline void sgd_apply_rows(const device float* arena, const device int* rows, const device float* g,
                           const device uchar* decays, const device float* hp, float grad_scale, uint d,
                           uint n_rows, uint height, uint offset, device uint* done, uint3 here) {
  uint p;
  if (!row_element(rows, d, n_rows, height, here, done, p)) return;
  const uint at = offset + p, q = here.y * d + here.x;
  add(arena, at, sgd_delta(arena, at, g[q], decay_rate(decays, at, hp[kWeightDecay]), hp, grad_scale));
}

inline void momentum_apply_rows(const device float* arena, const device int* rows, const device float* g,
                                const device float* m, const device uchar* decays, const device float* hp,
                                float grad_scale, uint d, uint n_rows, uint height, uint offset,
                                device uint* done, device float* m_out, uint3 here) {
  uint p;
  if (!row_element(rows, d, n_rows, height, here, done, p)) return;
  const uint at = offset + p, q = here.y * d + here.x;
  const float weight_decay = decay_rate(decays, at, hp[kWeightDecay]);
  m_out[q] = momentum_element(arena, at, g[q], m[p], weight_decay, hp, grad_scale);
}

inline void adam_apply_rows(const device float* arena, const device int* rows, const device float* g,
                            const device float* m, const device float* v, const device uchar* decays,
                            const device float* hp, float grad_scale, uint d, uint n_rows, uint height,
                            uint offset, device uint* done, device float* m_out, device float* v_out,
                            uint3 here) {
  uint p;
  if (!row_element(rows, d, n_rows, height, here, done, p)) return;
  const uint at = offset + p, q = here.y * d + here.x;
  const float s = grad_scale * g[q];
  const float mean = adam_mean(m[p], s, hp), square = adam_square(v[p], s, hp);
  add(arena, at, adam_delta(arena, at, mean, square, decay_rate(decays, at, hp[kDecay]), hp));
  m_out[q] = mean;
  v_out[q] = square;
}

// `m` and `v` are the whole shared segments, laid out as the arena.
inline void adam_shared_apply_rows(const device float* arena, const device float* m, const device float* v,
                                   const device uint* failures, const device int* rows,
                                   const device float* g, const device uchar* decays, const device float* hp,
                                   float grad_scale, uint d, uint n_rows, uint height, uint offset,
                                   device uint* done, uint3 here) {
  uint p;
  if (!row_element(rows, d, n_rows, height, here, done, p)) return;
  const uint at = offset + p, q = here.y * d + here.x;
  const float decay = decay_rate(decays, at, hp[kDecay]);
  add(arena, at, adam_shared_delta<kTries>(arena, m, v, failures, at, grad_scale * g[q], decay, hp));
}

}  // namespace mlxhog
