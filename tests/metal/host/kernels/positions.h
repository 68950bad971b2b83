// Where threads are: every attribute, and the order in which groups run.
#ifndef MLXHOG_TEST_POSITIONS_H
#define MLXHOG_TEST_POSITIONS_H

#include <metal_stdlib>
using namespace metal;

namespace mlxhog {

// 24 words for every thread of the grid, in the order of the parameters.
inline void positions(device uint* out, uint3 in_grid, uint3 in_group, uint3 group, uint3 grid,
                      uint3 groups, uint3 size, uint3 full_size, uint index, uint lane, uint simdgroup) {
  uint number = in_grid.x + grid.x * (in_grid.y + grid.y * in_grid.z);
  device uint* mine = out + 24 * number;
  const uint3 vectors[7] = {in_grid, in_group, group, grid, groups, size, full_size};
  for (uint k = 0; k < 7; ++k) {
    mine[3 * k] = vectors[k].x;
    mine[3 * k + 1] = vectors[k].y;
    mine[3 * k + 2] = vectors[k].z;
  }
  mine[21] = index;
  mine[22] = lane;
  mine[23] = simdgroup;
}

// order[k] = the group that was k-th to begin.
inline void arrival(const device uint* counter, device uint* order, uint group, uint index) {
  if (index != 0) return;
  device atomic_uint* next = (device atomic_uint*)counter;
  order[atomic_fetch_add_explicit(next, 1u, memory_order_relaxed)] = group;
}

}  // namespace mlxhog

#endif
