#include "mlstm_backward.h"

[[kernel]] void mlstm_bwd_pre(const device float* den [[buffer(0)]], const device float* M [[buffer(1)]],
                              const device float* h [[buffer(2)]], const device float* dh [[buffer(3)]],
                              constant uint& B [[buffer(4)]], constant uint& NH [[buffer(5)]],
                              constant uint& S [[buffer(6)]], constant uint& DV [[buffer(7)]],
                              constant float& eps [[buffer(8)]], device float* rN [[buffer(9)]],
                              device float* dden [[buffer(10)]], device float* dM [[buffer(11)]],
                              uint3 at [[thread_position_in_grid]]) {
  mlxhog::mlstm_bwd_pre(den, M, h, dh, rN, dden, dM, mlxhog::MlstmShape{B, NH, S, 1, 0, DV}, eps, at);
}

[[kernel]] void mlstm_bwd_states(const device float* q [[buffer(0)]], const device float* b [[buffer(1)]],
                                 const device float* m [[buffer(2)]], const device float* M [[buffer(3)]],
                                 const device float* rN [[buffer(4)]], const device float* dden [[buffer(5)]],
                                 const device float* dh [[buffer(6)]], const device float* dC_last [[buffer(7)]],
                                 const device float* dn_last [[buffer(8)]], constant uint& B [[buffer(9)]],
                                 constant uint& NH [[buffer(10)]], constant uint& S [[buffer(11)]],
                                 constant uint& L [[buffer(12)]], constant uint& DK [[buffer(13)]],
                                 constant uint& DV [[buffer(14)]], device float* dC [[buffer(15)]],
                                 device float* dn [[buffer(16)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::mlstm_bwd_states(q, b, m, M, rN, dden, dh, dC_last, dn_last, dC, dn, mlxhog::MlstmShape{B, NH, S, L, DK, DV},
                           at);
}

[[kernel]] void mlstm_bwd_out(const device float* q [[buffer(0)]], const device float* k [[buffer(1)]],
                              const device float* v [[buffer(2)]], const device float* i [[buffer(3)]],
                              const device float* b [[buffer(4)]], const device float* C [[buffer(5)]],
                              const device float* n [[buffer(6)]], const device float* m [[buffer(7)]],
                              const device float* M [[buffer(8)]], const device float* rN [[buffer(9)]],
                              const device float* dden [[buffer(10)]], const device float* dh [[buffer(11)]],
                              const device float* dC [[buffer(12)]], const device float* dn [[buffer(13)]],
                              constant uint& B [[buffer(14)]], constant uint& NH [[buffer(15)]],
                              constant uint& S [[buffer(16)]], constant uint& L [[buffer(17)]],
                              constant uint& DK [[buffer(18)]], constant uint& DV [[buffer(19)]],
                              device float* dq [[buffer(20)]], device float* dk [[buffer(21)]],
                              device float* dv [[buffer(22)]], device float* di [[buffer(23)]],
                              device float* db [[buffer(24)]], uint3 at [[thread_position_in_grid]],
                              uint3 thread_in_group [[thread_position_in_threadgroup]]) {
  threadgroup float weights[mlxhog::kMlstmBackwardWeights];
  static_assert(sizeof(weights) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::mlstm_bwd_out(q, k, v, i, b, C, n, m, M, rN, dden, dh, dC, dn, dq, dk, dv, di, db,
                        mlxhog::MlstmShape{B, NH, S, L, DK, DV}, weights, at, thread_in_group);
}
