[[kernel]] void custom_kernel_mlstm_bwd_out_float_float_float_float_float_float_float_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float(
  const device float* q [[buffer(0)]],
  const device float* k [[buffer(1)]],
  const device float* v [[buffer(2)]],
  const device float* C [[buffer(3)]],
  const device float* n [[buffer(4)]],
  const device float* wN [[buffer(5)]],
  const device float* we [[buffer(6)]],
  const device float* y [[buffer(7)]],
  const device float* X [[buffer(8)]],
  const device float* A [[buffer(9)]],
  const device float* zq [[buffer(10)]],
  const device float* zk [[buffer(11)]],
  const device float* dh [[buffer(12)]],
  const device float* dC [[buffer(13)]],
  const device float* dn [[buffer(14)]],
  const constant uint32_t& B [[buffer(15)]],
  const constant uint32_t& NH [[buffer(16)]],
  const constant uint32_t& S [[buffer(17)]],
  const constant uint32_t& L [[buffer(18)]],
  const constant uint32_t& DK [[buffer(19)]],
  const constant uint32_t& DV [[buffer(20)]],
  device float* dq [[buffer(21)]],
  device float* dk [[buffer(22)]],
  device float* dv [[buffer(23)]],
  device float* di [[buffer(24)]],
  device float* db [[buffer(25)]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {

        threadgroup float tiles[mlxhog::kTileFloats];
        threadgroup float sums[mlxhog::kMlstmOutSums];
        static_assert(sizeof(tiles) + sizeof(sums) <= 32768, "more than a chip has");
        mlxhog::mlstm_bwd_out(q, k, v, C, n, wN, we, y, X, A, zq, zk, dh, dC, dn, dq, dk, dv, di,
                              db, mlxhog::MlstmShape{B, NH, S, L, DK, DV}, tiles, sums,
                              threadgroup_position_in_grid, thread_position_in_threadgroup);
    
}

