[[kernel]] void custom_kernel_mlstm_bwd_scores_float_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float(
  const device float* q [[buffer(0)]],
  const device float* k [[buffer(1)]],
  const device float* v [[buffer(2)]],
  const device float* i [[buffer(3)]],
  const device float* b [[buffer(4)]],
  const device float* M [[buffer(5)]],
  const device float* rN [[buffer(6)]],
  const device float* dden [[buffer(7)]],
  const device float* dh [[buffer(8)]],
  const constant uint32_t& B [[buffer(9)]],
  const constant uint32_t& NH [[buffer(10)]],
  const constant uint32_t& S [[buffer(11)]],
  const constant uint32_t& L [[buffer(12)]],
  const constant uint32_t& DK [[buffer(13)]],
  const constant uint32_t& DV [[buffer(14)]],
  device float* X [[buffer(15)]],
  device float* A [[buffer(16)]],
  device float* zq [[buffer(17)]],
  device float* zk [[buffer(18)]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {

        threadgroup float tiles[mlxhog::kTileFloats];
        threadgroup float sums[mlxhog::kMlstmScoreSums];
        static_assert(sizeof(tiles) + sizeof(sums) <= 32768, "more than a chip has");
        mlxhog::mlstm_bwd_scores(q, k, v, i, b, M, rN, dden, dh, X, A, zq, zk,
                                 mlxhog::MlstmShape{B, NH, S, L, DK, DV}, tiles, sums,
                                 threadgroup_position_in_grid, thread_position_in_threadgroup);
    
}

