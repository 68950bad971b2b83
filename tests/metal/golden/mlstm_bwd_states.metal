[[kernel]] void custom_kernel_mlstm_bwd_states_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float(
  const device float* q [[buffer(0)]],
  const device float* b [[buffer(1)]],
  const device float* m [[buffer(2)]],
  const device float* wN [[buffer(3)]],
  const device float* we [[buffer(4)]],
  const device float* dh [[buffer(5)]],
  const device float* dC_last [[buffer(6)]],
  const device float* dn_last [[buffer(7)]],
  const constant uint32_t& B [[buffer(8)]],
  const constant uint32_t& NH [[buffer(9)]],
  const constant uint32_t& S [[buffer(10)]],
  const constant uint32_t& L [[buffer(11)]],
  const constant uint32_t& DK [[buffer(12)]],
  const constant uint32_t& DV [[buffer(13)]],
  device float* dC [[buffer(14)]],
  device float* dn [[buffer(15)]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {

        threadgroup float tiles[mlxhog::kTileFloats];
        static_assert(sizeof(tiles) <= 32768, "more threadgroup memory than a chip has");
        mlxhog::mlstm_bwd_states(q, b, m, wN, we, dh, dC_last, dn_last, dC, dn,
                                 mlxhog::MlstmShape{B, NH, S, L, DK, DV}, tiles,
                                 threadgroup_position_in_grid, thread_position_in_threadgroup);
    
}

