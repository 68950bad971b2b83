// The steps of `steps.h` where a gradient holds only some rows of a parameter, each once: an embedding.
//
// `m` and `v` are whole segments, laid out as the arena. Other rows keep their state as it is, and a row outside
// the parameter changes nothing; done[k] is 0 there.
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

inline void momentum_apply_rows(const device float* arena, const device float* m, const device int* rows,
                                const device float* g, const device uchar* decays, const device float* hp,
                                float grad_scale, uint d, uint n_rows, uint height, uint offset,
                                device uint* done, uint3 here) {
  uint p;
  if (!row_element(rows, d, n_rows, height, here, done, p)) return;
  const uint at = offset + p, q = here.y * d + here.x;
  const float weight_decay = decay_rate(decays, at, hp[kWeightDecay]);
  add(arena, at, momentum_delta(arena, m, at, g[q], weight_decay, hp, grad_scale));
}

inline void adam_apply_rows(const device float* arena, const device float* m, const device float* v,
                            const device int* rows, const device float* g, const device uchar* decays,
                            const device float* hp, float grad_scale, uint d, uint n_rows, uint height,
                            uint offset, device uint* done, uint3 here) {
  uint p;
  if (!row_element(rows, d, n_rows, height, here, done, p)) return;
  const uint at = offset + p, q = here.y * d + here.x;
  const float decay = decay_rate(decays, at, hp[kDecay]);
  add(arena, at, adam_own_delta(arena, m, v, at, grad_scale * g[q], decay, hp));
}

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
