#include "mlstm.h"

[[kernel]] void mlstm_gates(const device float* i [[buffer(0)]], const device float* f [[buffer(1)]],
                            constant uint& B [[buffer(2)]], constant uint& NH [[buffer(3)]],
                            constant uint& S [[buffer(4)]], constant uint& L [[buffer(5)]],
                            device float* b [[buffer(6)]], device float* a [[buffer(7)]],
                            device float* g [[buffer(8)]], device float* amax [[buffer(9)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint3 thread_in_group [[thread_position_in_threadgroup]]) {
  threadgroup float totals[mlxhog::kMlstmSimdgroups];
  threadgroup float peaks[mlxhog::kMlstmSimdgroups];
  static_assert(sizeof(totals) + sizeof(peaks) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::mlstm_gates(i, f, b, a, g, amax, mlxhog::MlstmShape{B, NH, S, L, 0, 0}, totals, peaks, group,
                      thread_in_group);
}

[[kernel]] void mlstm_states(const device float* k [[buffer(0)]], const device float* v [[buffer(1)]],
                             const device float* a [[buffer(2)]], const device float* g [[buffer(3)]],
                             const device float* amax [[buffer(4)]], const device float* C0 [[buffer(5)]],
                             const device float* n0 [[buffer(6)]], const device float* m0 [[buffer(7)]],
                             constant uint& B [[buffer(8)]], constant uint& NH [[buffer(9)]],
                             constant uint& S [[buffer(10)]], constant uint& L [[buffer(11)]],
                             constant uint& DK [[buffer(12)]], constant uint& DV [[buffer(13)]],
                             device float* C [[buffer(14)]], device float* n [[buffer(15)]],
                             device float* m [[buffer(16)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::mlstm_states(k, v, a, g, amax, C0, n0, m0, C, n, m, mlxhog::MlstmShape{B, NH, S, L, DK, DV}, at);
}

[[kernel]] void mlstm_out(const device float* q [[buffer(0)]], const device float* k [[buffer(1)]],
                          const device float* v [[buffer(2)]], const device float* b [[buffer(3)]],
                          const device float* i [[buffer(4)]], const device float* C [[buffer(5)]],
                          const device float* n [[buffer(6)]], const device float* m [[buffer(7)]],
                          constant uint& B [[buffer(8)]], constant uint& NH [[buffer(9)]],
                          constant uint& S [[buffer(10)]], constant uint& L [[buffer(11)]],
                          constant uint& DK [[buffer(12)]], constant uint& DV [[buffer(13)]],
                          constant float& eps [[buffer(14)]], device float* h [[buffer(15)]],
                          device float* den [[buffer(16)]], device float* M [[buffer(17)]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint3 thread_in_group [[thread_position_in_threadgroup]]) {
  threadgroup float tile[mlxhog::kMlstmOutTile];
  static_assert(sizeof(tile) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::mlstm_out(q, k, v, b, i, C, n, m, h, den, M, mlxhog::MlstmShape{B, NH, S, L, DK, DV}, eps, tile, group,
                    thread_in_group);
}
