// Adds to the shared arena. Offsets and sizes count floats; offset + n stays below 2^31.
#pragma once

#include "atomics.h"
#include "race_point.h"
#include "rows.h"
#include "unfused.h"

namespace mlxhog {

// arena[offset + i] += scale * g[i], the product rounded first.
inline void dense_axpy(const device float* arena, const device float* g, float scale, uint n, uint offset,
                       device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  add(arena, offset + i, scale * g[i]);
}

// A naive add: it overwrites another writer between the load and the store.
inline void racy_axpy(const device float* arena, const device float* g, float scale, uint n, uint offset,
                      device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  device float* w = (device float*)(arena + offset + i);
  const float old = *w;
  RACE_POINT();
  *w = old + scale * g[i];
}

// Row rows[k] of the parameter at `offset` gets scale * g[k]; equal rows add up.
inline void scatter_add_rows(const device float* arena, const device int* rows, const device float* g,
                             float scale, uint d, uint n_rows, uint height, uint offset, device uint* done,
                             uint3 at) {
  uint p;
  if (!row_element(rows, d, n_rows, height, at, done, p)) return;
  add(arena, offset + p, scale * g[at.y * d + at.x]);
}

}  // namespace mlxhog
