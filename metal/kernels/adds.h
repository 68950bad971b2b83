// Adds to the shared arena, and steps of optimizers along directions. Offsets and sizes count floats; offset + n stays
// below 2^31.
#pragma once

#include "atomics.h"
#include "unfused.h"

namespace mlxhog {

// arena[offset + i] += scale * g[i], the product rounded first.
inline void dense_axpy(const device float* arena, const device float* g, device uint* done, float scale, uint n,
                       uint offset, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  add(arena, offset + i, scale * g[i]);
}

enum : uint { kFlagFloats = 32 };

// The step of an element, rounded as mlxhog_delta of metal/native/updates/elements.cpp. `decays` has a flag for each
// kFlagFloats floats of the arena, which is how parameters are aligned; `hp` has the four rates of those that decay,
// then those of the others, so that a new learning rate is new data and never a new kernel.
inline float step_delta(const device float* arena, const device uchar* decays, const device float* hp, uint at,
                        float u) {
  const device float* rates = hp + (decays[at / kFlagFloats] != 0 ? 0 : 4);
  const float w = load(arena, at);
  return -(rates[0] * (rates[1] * u + rates[2] * w) + rates[3] * w);
}

inline void step(const device float* arena, const device float* g, const device uchar* decays, const device float* hp,
                 device uint* done, uint n, uint offset, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  add(arena, offset + i, step_delta(arena, decays, hp, offset + i, g[i]));
}

// The same, kept in `last`, and the one before in `prev`. Of two workers' steps at once either may be the last one.
inline void step_recorded(const device float* arena, const device float* last, const device float* prev,
                          const device float* g, const device uchar* decays, const device float* hp,
                          device uint* done, uint n, uint offset, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  const uint at = offset + i;
  const float delta = step_delta(arena, decays, hp, at, g[i]);
  store(prev, at, load(last, at));
  store(last, at, delta);
  add(arena, at, delta);
}

// Only some rows of a parameter with `height` rows of d floats: thread (x, k) has column x of row rows[k]. A row
// outside of it changes nothing, and done[k] is 0 there.
inline void step_rows(const device float* arena, const device int* rows, const device float* g,
                      const device uchar* decays, const device float* hp, device uint* done, uint d,
                      uint n_rows, uint height, uint offset, uint3 at) {
  if (at.x >= d || at.y >= n_rows) return;
  const int row = rows[at.y];
  const bool inside = row >= 0 && uint(row) < height;
  if (at.x == 0) done[at.y] = inside ? 1u : 0u;
  if (!inside) return;
  const uint p = offset + uint(row) * d + at.x;
  add(arena, p, step_delta(arena, decays, hp, p, g[at.y * d + at.x]));
}

}  // namespace mlxhog
