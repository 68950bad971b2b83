#include "slstm.h"

[[kernel]] void slstm_forward(const device float* G [[buffer(0)]], const device float* R [[buffer(1)]],
                              const device float* bias [[buffer(2)]], const device float* h0 [[buffer(3)]],
                              const device float* c0 [[buffer(4)]], const device float* n0 [[buffer(5)]],
                              const device float* m0 [[buffer(6)]], const device int* starts [[buffer(7)]],
                              constant uint& B [[buffer(8)]], constant uint& S [[buffer(9)]],
                              constant uint& NH [[buffer(10)]], constant uint& DH [[buffer(11)]],
                              device float* h [[buffer(12)]], device float* c [[buffer(13)]],
                              device float* n [[buffer(14)]], device float* m [[buffer(15)]],
                              uint3 at [[thread_position_in_grid]]) {
  threadgroup float shared_h[mlxhog::kSlstmUnits];
  static_assert(sizeof(shared_h) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::slstm_forward(G, R, bias, h0, c0, n0, m0, starts, h, c, n, m, mlxhog::SlstmShape{B, S, NH, DH}, shared_h, at);
}

[[kernel]] void slstm_backward(const device float* G [[buffer(0)]], const device float* R [[buffer(1)]],
                               const device float* bias [[buffer(2)]], const device float* h0 [[buffer(3)]],
                               const device float* c0 [[buffer(4)]], const device float* n0 [[buffer(5)]],
                               const device float* m0 [[buffer(6)]], const device int* starts [[buffer(7)]],
                               const device float* h [[buffer(8)]], const device float* c [[buffer(9)]],
                               const device float* n [[buffer(10)]], const device float* m [[buffer(11)]],
                               const device float* dh [[buffer(12)]], const device float* dc_last [[buffer(13)]],
                               const device float* dn_last [[buffer(14)]], const device float* dm_last [[buffer(15)]],
                               constant uint& B [[buffer(16)]], constant uint& S [[buffer(17)]],
                               constant uint& NH [[buffer(18)]], constant uint& DH [[buffer(19)]],
                               device float* dG [[buffer(20)]], device float* dh0 [[buffer(21)]],
                               device float* dc0 [[buffer(22)]], device float* dn0 [[buffer(23)]],
                               device float* dm0 [[buffer(24)]], uint3 at [[thread_position_in_grid]]) {
  threadgroup float shared[mlxhog::kSlstmShared];
  static_assert(sizeof(shared) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::slstm_backward(G, R, bias, h0, c0, n0, m0, starts, h, c, n, m, dh, dc_last, dn_last, dm_last, dG, dh0, dc0,
                         dn0, dm0, mlxhog::SlstmShape{B, S, NH, DH}, shared, at);
}
