[[kernel]] void custom_kernel_mlstm_bwd_states_float_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float(
  const device float* q [[buffer(0)]],
  const device float* b [[buffer(1)]],
  const device float* m [[buffer(2)]],
  const device float* M [[buffer(3)]],
  const device float* rN [[buffer(4)]],
  const device float* dden [[buffer(5)]],
  const device float* dh [[buffer(6)]],
  const device float* dC_last [[buffer(7)]],
  const device float* dn_last [[buffer(8)]],
  const constant uint32_t& B [[buffer(9)]],
  const constant uint32_t& NH [[buffer(10)]],
  const constant uint32_t& S [[buffer(11)]],
  const constant uint32_t& L [[buffer(12)]],
  const constant uint32_t& DK [[buffer(13)]],
  const constant uint32_t& DV [[buffer(14)]],
  device float* dC [[buffer(15)]],
  device float* dn [[buffer(16)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {

        mlxhog::mlstm_bwd_states(q, b, m, M, rN, dden, dh, dC_last, dn_last, dC, dn,
                                 mlxhog::MlstmShape{B, NH, S, L, DK, DV},
                                 thread_position_in_grid);
    
}

