#include "conv.h"

[[kernel]] void conv_forward(const device float* x [[buffer(0)]], const device float* w [[buffer(1)]],
                             const device float* bias [[buffer(2)]], const device int* back [[buffer(3)]],
                             constant uint& B [[buffer(4)]], constant uint& S [[buffer(5)]],
                             constant uint& CH [[buffer(6)]], constant uint& K [[buffer(7)]],
                             constant uint& P [[buffer(8)]], constant uint& silu [[buffer(9)]],
                             device float* y [[buffer(10)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::conv_forward(x, w, bias, back, y, mlxhog::ConvShape{B, S, CH, K, P}, silu, at);
}

[[kernel]] void conv_bwd_pre(const device float* x [[buffer(0)]], const device float* w [[buffer(1)]],
                             const device float* bias [[buffer(2)]], const device int* back [[buffer(3)]],
                             const device float* dy [[buffer(4)]], constant uint& B [[buffer(5)]],
                             constant uint& S [[buffer(6)]], constant uint& CH [[buffer(7)]],
                             constant uint& K [[buffer(8)]], constant uint& P [[buffer(9)]],
                             device float* dpre [[buffer(10)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::conv_bwd_pre(x, w, bias, back, dy, dpre, mlxhog::ConvShape{B, S, CH, K, P}, at);
}

[[kernel]] void conv_bwd_input(const device float* w [[buffer(0)]], const device int* back [[buffer(1)]],
                               const device float* dpre [[buffer(2)]], constant uint& B [[buffer(3)]],
                               constant uint& S [[buffer(4)]], constant uint& CH [[buffer(5)]],
                               constant uint& K [[buffer(6)]], constant uint& P [[buffer(7)]],
                               device float* dx [[buffer(8)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::conv_bwd_input(w, back, dpre, dx, mlxhog::ConvShape{B, S, CH, K, P}, at);
}

[[kernel]] void conv_bwd_partial(const device float* x [[buffer(0)]], const device int* back [[buffer(1)]],
                                 const device float* dpre [[buffer(2)]], constant uint& B [[buffer(3)]],
                                 constant uint& S [[buffer(4)]], constant uint& CH [[buffer(5)]],
                                 constant uint& K [[buffer(6)]], constant uint& P [[buffer(7)]],
                                 device float* part [[buffer(8)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::conv_bwd_partial(x, back, dpre, part, mlxhog::ConvShape{B, S, CH, K, P}, at);
}

[[kernel]] void conv_bwd_final(const device float* part [[buffer(0)]], constant uint& B [[buffer(1)]],
                               constant uint& S [[buffer(2)]], constant uint& CH [[buffer(3)]],
                               constant uint& K [[buffer(4)]], constant uint& P [[buffer(5)]],
                               device float* dw [[buffer(6)]], device float* dbias [[buffer(7)]],
                               uint3 at [[thread_position_in_grid]]) {
  mlxhog::conv_bwd_final(part, dw, dbias, mlxhog::ConvShape{B, S, CH, K, P}, at);
}
