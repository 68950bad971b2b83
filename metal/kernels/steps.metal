#include "steps.h"

[[kernel]] void sgd_apply(device float* arena [[buffer(0)]], const device float* g [[buffer(1)]],
                          const device uchar* decays [[buffer(2)]], const device float* hp [[buffer(3)]],
                          constant float& grad_scale [[buffer(4)]], constant uint& n [[buffer(5)]],
                          constant uint& offset [[buffer(6)]], device uint* done [[buffer(7)]],
                          uint3 at [[thread_position_in_grid]]) {
  mlxhog::sgd_apply(arena, g, decays, hp, grad_scale, n, offset, done, at.x);
}

[[kernel]] void sgd_recorded_apply(device float* arena [[buffer(0)]], device float* last [[buffer(1)]],
                                   device float* prev [[buffer(2)]], const device float* g [[buffer(3)]],
                                   const device uchar* decays [[buffer(4)]], const device float* hp [[buffer(5)]],
                                   constant float& grad_scale [[buffer(6)]], constant uint& n [[buffer(7)]],
                                   constant uint& offset [[buffer(8)]], device uint* done [[buffer(9)]],
                                   uint3 at [[thread_position_in_grid]]) {
  mlxhog::sgd_recorded_apply(arena, last, prev, g, decays, hp, grad_scale, n, offset, done, at.x);
}

[[kernel]] void momentum_apply(device float* arena [[buffer(0)]], device float* m [[buffer(1)]],
                               const device float* g [[buffer(2)]], const device uchar* decays [[buffer(3)]],
                               const device float* hp [[buffer(4)]], constant float& grad_scale [[buffer(5)]],
                               constant uint& n [[buffer(6)]], constant uint& offset [[buffer(7)]],
                               device uint* done [[buffer(8)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::momentum_apply(arena, m, g, decays, hp, grad_scale, n, offset, done, at.x);
}

[[kernel]] void adam_apply(device float* arena [[buffer(0)]], device float* m [[buffer(1)]],
                           device float* v [[buffer(2)]], const device float* g [[buffer(3)]],
                           const device uchar* decays [[buffer(4)]], const device float* hp [[buffer(5)]],
                           constant float& grad_scale [[buffer(6)]], constant uint& n [[buffer(7)]],
                           constant uint& offset [[buffer(8)]], device uint* done [[buffer(9)]],
                           uint3 at [[thread_position_in_grid]]) {
  mlxhog::adam_apply(arena, m, v, g, decays, hp, grad_scale, n, offset, done, at.x);
}

[[kernel]] void adam_shared_apply(device float* arena [[buffer(0)]], device float* m [[buffer(1)]],
                                  device float* v [[buffer(2)]], device uint* failures [[buffer(3)]],
                                  const device float* g [[buffer(4)]], const device uchar* decays [[buffer(5)]],
                                  const device float* hp [[buffer(6)]],
                                  constant float& grad_scale [[buffer(7)]], constant uint& n [[buffer(8)]],
                                  constant uint& offset [[buffer(9)]], device uint* done [[buffer(10)]],
                                  uint3 at [[thread_position_in_grid]]) {
  mlxhog::adam_shared_apply(arena, m, v, failures, g, decays, hp, grad_scale, n, offset, done, at.x);
}

[[kernel]] void adam_shared_recorded_apply(
    device float* arena [[buffer(0)]], device float* last [[buffer(1)]], device float* prev [[buffer(2)]],
    device float* m [[buffer(3)]], device float* v [[buffer(4)]], device uint* failures [[buffer(5)]],
    const device float* g [[buffer(6)]], const device uchar* decays [[buffer(7)]],
    const device float* hp [[buffer(8)]], constant float& grad_scale [[buffer(9)]], constant uint& n [[buffer(10)]],
    constant uint& offset [[buffer(11)]], device uint* done [[buffer(12)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::adam_shared_recorded_apply(arena, last, prev, m, v, failures, g, decays, hp, grad_scale, n, offset, done,
                                     at.x);
}

[[kernel]] void muon_direction(device float* m [[buffer(0)]], const device float* g [[buffer(1)]],
                               const device float* hp [[buffer(2)]], constant float& grad_scale [[buffer(3)]],
                               constant uint& n [[buffer(4)]], constant uint& offset [[buffer(5)]],
                               device float* x_out [[buffer(6)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::muon_direction(m, g, hp, grad_scale, n, offset, x_out, at.x);
}

[[kernel]] void muon_direction_shared(device float* m [[buffer(0)]], device uint* failures [[buffer(1)]],
                                      const device float* g [[buffer(2)]], const device float* hp [[buffer(3)]],
                                      constant float& grad_scale [[buffer(4)]], constant uint& n [[buffer(5)]],
                                      constant uint& offset [[buffer(6)]], device float* x_out [[buffer(7)]],
                                      uint3 at [[thread_position_in_grid]]) {
  mlxhog::muon_direction_shared(m, failures, g, hp, grad_scale, n, offset, x_out, at.x);
}

[[kernel]] void channel_scale_apply(device float* arena [[buffer(0)]], const device float* g [[buffer(1)]],
                                    const device float* s [[buffer(2)]], constant float& coef [[buffer(3)]],
                                    constant float& decay [[buffer(4)]], constant uint& cols [[buffer(5)]],
                                    constant uint& row_step [[buffer(6)]],
                                    constant uint& col_step [[buffer(7)]], constant uint& n [[buffer(8)]],
                                    constant uint& offset [[buffer(9)]], device uint* done [[buffer(10)]],
                                    uint3 at [[thread_position_in_grid]]) {
  mlxhog::channel_scale_apply(arena, g, s, coef, decay, cols, row_step, col_step, n, offset, done, at.x);
}
