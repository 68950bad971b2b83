#include "positions.h"

[[kernel]] void positions(const device float* x [[buffer(0)]], device uint* out [[buffer(1)]],
                          uint3 in_grid [[thread_position_in_grid]],
                          uint3 in_group [[thread_position_in_threadgroup]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint3 grid [[threads_per_grid]],
                          uint3 groups [[threadgroups_per_grid]],
                          uint3 size [[threads_per_threadgroup]],
                          uint3 full_size [[dispatch_threads_per_threadgroup]],
                          uint index [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  mlxhog::positions(out, in_grid, in_group, group, grid, groups, size, full_size, index, lane,
                    simdgroup);
}

[[kernel]] void arrival(device uint* counter [[buffer(0)]], device uint* order [[buffer(1)]],
                        uint3 group [[threadgroup_position_in_grid]],
                        uint index [[thread_index_in_threadgroup]]) {
  mlxhog::arrival(counter, order, group.x, index);
}
