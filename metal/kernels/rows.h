// Which element of a parameter a thread works on, where a gradient holds only some of its rows.
#pragma once

#include <metal_stdlib>

using namespace metal;

namespace mlxhog {

// Thread (x, k) of a grid (d, n_rows) works on `p`, column x of row rows[k] of a parameter with `height` rows
// of d floats. False beyond the grid, and for a row outside the parameter; done[k] is 0 for the latter.
inline bool row_element(const device int* rows, uint d, uint n_rows, uint height, uint3 at, device uint* done,
                        thread uint& p) {
  if (at.x >= d || at.y >= n_rows) return false;
  const int row = rows[at.y];
  const bool inside = row >= 0 && uint(row) < height;
  if (at.x == 0) done[at.y] = inside ? 1u : 0u;
  p = uint(row) * d + at.x;
  return inside;
}

}  // namespace mlxhog
