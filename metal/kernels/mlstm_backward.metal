#include "mlstm_backward.h"

[[kernel]] void mlstm_bwd_pre(const device float* i [[buffer(0)]], const device float* b [[buffer(1)]],
                              const device float* m [[buffer(2)]], const device float* den [[buffer(3)]],
                              const device float* M [[buffer(4)]], const device float* h [[buffer(5)]],
                              const device float* dh [[buffer(6)]], constant uint& B [[buffer(7)]],
                              constant uint& NH [[buffer(8)]], constant uint& S [[buffer(9)]],
                              constant uint& L [[buffer(10)]], constant uint& DK [[buffer(11)]],
                              constant uint& DV [[buffer(12)]], constant float& eps [[buffer(13)]],
                              device float* rN [[buffer(14)]], device float* dden [[buffer(15)]],
                              device float* dM [[buffer(16)]], device float* wN [[buffer(17)]],
                              device float* we [[buffer(18)]], device float* y [[buffer(19)]],
                              uint3 at [[thread_position_in_grid]]) {
  mlxhog::mlstm_bwd_pre(i, b, m, den, M, h, dh, rN, dden, dM, wN, we, y,
                        mlxhog::MlstmShape{B, NH, S, L, DK, DV}, eps, at);
}

[[kernel]] void mlstm_bwd_states(const device float* q [[buffer(0)]], const device float* b [[buffer(1)]],
                                 const device float* m [[buffer(2)]], const device float* wN [[buffer(3)]],
                                 const device float* we [[buffer(4)]], const device float* dh [[buffer(5)]],
                                 const device float* dC_last [[buffer(6)]], const device float* dn_last [[buffer(7)]],
                                 constant uint& B [[buffer(8)]], constant uint& NH [[buffer(9)]],
                                 constant uint& S [[buffer(10)]], constant uint& L [[buffer(11)]],
                                 constant uint& DK [[buffer(12)]], constant uint& DV [[buffer(13)]],
                                 device float* dC [[buffer(14)]], device float* dn [[buffer(15)]],
                                 uint3 group [[threadgroup_position_in_grid]],
                                 uint3 thread_in_group [[thread_position_in_threadgroup]]) {
  threadgroup float tiles[mlxhog::kTileFloats];
  static_assert(sizeof(tiles) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::mlstm_bwd_states(q, b, m, wN, we, dh, dC_last, dn_last, dC, dn,
                           mlxhog::MlstmShape{B, NH, S, L, DK, DV}, tiles, group, thread_in_group);
}

[[kernel]] void mlstm_bwd_scores(const device float* q [[buffer(0)]], const device float* k [[buffer(1)]],
                                 const device float* v [[buffer(2)]], const device float* i [[buffer(3)]],
                                 const device float* b [[buffer(4)]], const device float* M [[buffer(5)]],
                                 const device float* rN [[buffer(6)]], const device float* dden [[buffer(7)]],
                                 const device float* dh [[buffer(8)]], constant uint& B [[buffer(9)]],
                                 constant uint& NH [[buffer(10)]], constant uint& S [[buffer(11)]],
                                 constant uint& L [[buffer(12)]], constant uint& DK [[buffer(13)]],
                                 constant uint& DV [[buffer(14)]], device float* X [[buffer(15)]],
                                 device float* A [[buffer(16)]], device float* zq [[buffer(17)]],
                                 device float* zk [[buffer(18)]], uint3 group [[threadgroup_position_in_grid]],
                                 uint3 thread_in_group [[thread_position_in_threadgroup]]) {
  threadgroup float tiles[mlxhog::kTileFloats];
  threadgroup float sums[mlxhog::kMlstmScoreSums];
  static_assert(sizeof(tiles) + sizeof(sums) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::mlstm_bwd_scores(q, k, v, i, b, M, rN, dden, dh, X, A, zq, zk,
                           mlxhog::MlstmShape{B, NH, S, L, DK, DV}, tiles, sums, group, thread_in_group);
}

[[kernel]] void mlstm_bwd_out(const device float* q [[buffer(0)]], const device float* k [[buffer(1)]],
                              const device float* v [[buffer(2)]], const device float* C [[buffer(3)]],
                              const device float* n [[buffer(4)]], const device float* wN [[buffer(5)]],
                              const device float* we [[buffer(6)]], const device float* y [[buffer(7)]],
                              const device float* X [[buffer(8)]], const device float* A [[buffer(9)]],
                              const device float* zq [[buffer(10)]], const device float* zk [[buffer(11)]],
                              const device float* dh [[buffer(12)]], const device float* dC [[buffer(13)]],
                              const device float* dn [[buffer(14)]], constant uint& B [[buffer(15)]],
                              constant uint& NH [[buffer(16)]], constant uint& S [[buffer(17)]],
                              constant uint& L [[buffer(18)]], constant uint& DK [[buffer(19)]],
                              constant uint& DV [[buffer(20)]], device float* dq [[buffer(21)]],
                              device float* dk [[buffer(22)]], device float* dv [[buffer(23)]],
                              device float* di [[buffer(24)]], device float* db [[buffer(25)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint3 thread_in_group [[thread_position_in_threadgroup]]) {
  threadgroup float tiles[mlxhog::kTileFloats];
  threadgroup float sums[mlxhog::kMlstmOutSums];
  static_assert(sizeof(tiles) + sizeof(sums) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::mlstm_bwd_out(q, k, v, C, n, wN, we, y, X, A, zq, zk, dh, dC, dn, dq, dk, dv, di, db,
                        mlxhog::MlstmShape{B, NH, S, L, DK, DV}, tiles, sums, group, thread_in_group);
}
