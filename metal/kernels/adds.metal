#include "adds.h"

[[kernel]] void dense_axpy(device float* arena [[buffer(0)]], const device float* g [[buffer(1)]],
                           constant float& scale [[buffer(2)]], constant uint& n [[buffer(3)]],
                           constant uint& offset [[buffer(4)]], device uint* done [[buffer(5)]],
                           uint3 at [[thread_position_in_grid]]) {
  mlxhog::dense_axpy(arena, g, scale, n, offset, done, at.x);
}

[[kernel]] void racy_axpy(device float* arena [[buffer(0)]], const device float* g [[buffer(1)]],
                          constant float& scale [[buffer(2)]], constant uint& n [[buffer(3)]],
                          constant uint& offset [[buffer(4)]], device uint* done [[buffer(5)]],
                          uint3 at [[thread_position_in_grid]]) {
  mlxhog::racy_axpy(arena, g, scale, n, offset, done, at.x);
}

[[kernel]] void scatter_add_rows(device float* arena [[buffer(0)]], const device int* rows [[buffer(1)]],
                                 const device float* g [[buffer(2)]], constant float& scale [[buffer(3)]],
                                 constant uint& d [[buffer(4)]], constant uint& n_rows [[buffer(5)]],
                                 constant uint& height [[buffer(6)]], constant uint& offset [[buffer(7)]],
                                 device uint* done [[buffer(8)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::scatter_add_rows(arena, rows, g, scale, d, n_rows, height, offset, done, at);
}
