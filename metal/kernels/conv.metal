#include "conv.h"

[[kernel]] void conv_forward(const device float* x [[buffer(0)]], const device float* w [[buffer(1)]],
                             const device float* bias [[buffer(2)]], constant uint& B [[buffer(3)]],
                             constant uint& S [[buffer(4)]], constant uint& CH [[buffer(5)]],
                             constant uint& K [[buffer(6)]], device float* y [[buffer(7)]],
                             uint3 at [[thread_position_in_grid]]) {
  mlxhog::conv_forward(x, w, bias, y, mlxhog::ConvShape{B, S, CH, K}, at);
}

[[kernel]] void conv_bwd_pre(const device float* x [[buffer(0)]], const device float* w [[buffer(1)]],
                             const device float* bias [[buffer(2)]], const device float* dy [[buffer(3)]],
                             constant uint& B [[buffer(4)]], constant uint& S [[buffer(5)]],
                             constant uint& CH [[buffer(6)]], constant uint& K [[buffer(7)]],
                             device float* dpre [[buffer(8)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::conv_bwd_pre(x, w, bias, dy, dpre, mlxhog::ConvShape{B, S, CH, K}, at);
}

[[kernel]] void conv_bwd_input(const device float* w [[buffer(0)]], const device float* dpre [[buffer(1)]],
                               constant uint& B [[buffer(2)]], constant uint& S [[buffer(3)]],
                               constant uint& CH [[buffer(4)]], constant uint& K [[buffer(5)]],
                               device float* dx [[buffer(6)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::conv_bwd_input(w, dpre, dx, mlxhog::ConvShape{B, S, CH, K}, at);
}

[[kernel]] void conv_bwd_partial(const device float* x [[buffer(0)]], const device float* dpre [[buffer(1)]],
                                 constant uint& B [[buffer(2)]], constant uint& S [[buffer(3)]],
                                 constant uint& CH [[buffer(4)]], constant uint& K [[buffer(5)]],
                                 device float* part [[buffer(6)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::conv_bwd_partial(x, dpre, part, mlxhog::ConvShape{B, S, CH, K}, at);
}

[[kernel]] void conv_bwd_final(const device float* part [[buffer(0)]], constant uint& B [[buffer(1)]],
                               constant uint& S [[buffer(2)]], constant uint& CH [[buffer(3)]],
                               constant uint& K [[buffer(4)]], device float* dw [[buffer(5)]],
                               device float* dbias [[buffer(6)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::conv_bwd_final(part, dw, dbias, mlxhog::ConvShape{B, S, CH, K}, at);
}
