#include "row_steps.h"

[[kernel]] void sgd_apply_rows(device float* arena [[buffer(0)]], const device int* rows [[buffer(1)]],
                               const device float* g [[buffer(2)]], const device uchar* decays [[buffer(3)]],
                               const device float* hp [[buffer(4)]], constant float& grad_scale [[buffer(5)]],
                               constant uint& d [[buffer(6)]], constant uint& n_rows [[buffer(7)]],
                               constant uint& height [[buffer(8)]], constant uint& offset [[buffer(9)]],
                               device uint* done [[buffer(10)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::sgd_apply_rows(arena, rows, g, decays, hp, grad_scale, d, n_rows, height, offset, done, at);
}

[[kernel]] void momentum_apply_rows(device float* arena [[buffer(0)]], device float* m [[buffer(1)]],
                                    const device int* rows [[buffer(2)]], const device float* g [[buffer(3)]],
                                    const device uchar* decays [[buffer(4)]],
                                    const device float* hp [[buffer(5)]],
                                    constant float& grad_scale [[buffer(6)]], constant uint& d [[buffer(7)]],
                                    constant uint& n_rows [[buffer(8)]], constant uint& height [[buffer(9)]],
                                    constant uint& offset [[buffer(10)]], device uint* done [[buffer(11)]],
                                    uint3 at [[thread_position_in_grid]]) {
  mlxhog::momentum_apply_rows(arena, m, rows, g, decays, hp, grad_scale, d, n_rows, height, offset, done, at);
}

[[kernel]] void adam_apply_rows(device float* arena [[buffer(0)]], device float* m [[buffer(1)]],
                                device float* v [[buffer(2)]], const device int* rows [[buffer(3)]],
                                const device float* g [[buffer(4)]], const device uchar* decays [[buffer(5)]],
                                const device float* hp [[buffer(6)]], constant float& grad_scale [[buffer(7)]],
                                constant uint& d [[buffer(8)]], constant uint& n_rows [[buffer(9)]],
                                constant uint& height [[buffer(10)]], constant uint& offset [[buffer(11)]],
                                device uint* done [[buffer(12)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::adam_apply_rows(arena, m, v, rows, g, decays, hp, grad_scale, d, n_rows, height, offset, done, at);
}

[[kernel]] void adam_shared_apply_rows(device float* arena [[buffer(0)]], device float* m [[buffer(1)]],
                                       device float* v [[buffer(2)]], device uint* failures [[buffer(3)]],
                                       const device int* rows [[buffer(4)]],
                                       const device float* g [[buffer(5)]],
                                       const device uchar* decays [[buffer(6)]],
                                       const device float* hp [[buffer(7)]],
                                       constant float& grad_scale [[buffer(8)]], constant uint& d [[buffer(9)]],
                                       constant uint& n_rows [[buffer(10)]],
                                       constant uint& height [[buffer(11)]],
                                       constant uint& offset [[buffer(12)]], device uint* done [[buffer(13)]],
                                       uint3 at [[thread_position_in_grid]]) {
  mlxhog::adam_shared_apply_rows(arena, m, v, failures, rows, g, decays, hp, grad_scale, d, n_rows, height,
                                 offset, done, at);
}
