#include "slstm.h"

template <int T>
[[kernel]] void slstm_forward(const device float* G [[buffer(0)]], const device float* R_T [[buffer(1)]],
                              const device float* bias [[buffer(2)]], const device float* h0 [[buffer(3)]],
                              const device float* c0 [[buffer(4)]], const device float* n0 [[buffer(5)]],
                              const device float* m0 [[buffer(6)]], const device int* starts [[buffer(7)]],
                              constant uint& B [[buffer(8)]], constant uint& S [[buffer(9)]],
                              constant uint& NH [[buffer(10)]], constant uint& DH [[buffer(11)]],
                              device float* h [[buffer(12)]], device float* c [[buffer(13)]],
                              device float* n [[buffer(14)]], device float* m [[buffer(15)]],
                              device float* pre [[buffer(16)]], uint3 at [[thread_position_in_grid]]) {
  threadgroup float shared_h[T];
  static_assert(sizeof(shared_h) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::slstm_forward(G, R_T, bias, h0, c0, n0, m0, starts, h, c, n, m, pre, mlxhog::SlstmShape{B, S, NH, DH},
                        shared_h, at);
}

template <int T>
[[kernel]] void slstm_backward(const device float* R [[buffer(0)]], const device float* c0 [[buffer(1)]],
                               const device float* n0 [[buffer(2)]], const device float* m0 [[buffer(3)]],
                               const device int* starts [[buffer(4)]], const device float* c [[buffer(5)]],
                               const device float* n [[buffer(6)]], const device float* m [[buffer(7)]],
                               const device float* pre [[buffer(8)]], const device float* dh [[buffer(9)]],
                               const device float* dc_last [[buffer(10)]], const device float* dn_last [[buffer(11)]],
                               const device float* dm_last [[buffer(12)]], constant uint& B [[buffer(13)]],
                               constant uint& S [[buffer(14)]], constant uint& NH [[buffer(15)]],
                               constant uint& DH [[buffer(16)]], device float* dG [[buffer(17)]],
                               device float* dh0 [[buffer(18)]], device float* dc0 [[buffer(19)]],
                               device float* dn0 [[buffer(20)]], device float* dm0 [[buffer(21)]],
                               uint3 at [[thread_position_in_grid]]) {
  threadgroup float shared_dG[4 * T];
  static_assert(sizeof(shared_dG) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::slstm_backward(R, c0, n0, m0, starts, c, n, m, pre, dh, dc_last, dn_last, dm_last, dG, dh0, dc0, dn0, dm0,
                         mlxhog::SlstmShape{B, S, NH, DH}, shared_dG, at);
}

// UNITS in slstm.py
template [[host_name("slstm_forward_64")]] [[kernel]] decltype(slstm_forward<64>) slstm_forward<64>;
template [[host_name("slstm_forward_256")]] [[kernel]] decltype(slstm_forward<256>) slstm_forward<256>;
template [[host_name("slstm_forward_1024")]] [[kernel]] decltype(slstm_forward<1024>) slstm_forward<1024>;
template [[host_name("slstm_backward_64")]] [[kernel]] decltype(slstm_backward<64>) slstm_backward<64>;
template [[host_name("slstm_backward_256")]] [[kernel]] decltype(slstm_backward<256>) slstm_backward<256>;
template [[host_name("slstm_backward_1024")]] [[kernel]] decltype(slstm_backward<1024>) slstm_backward<1024>;
