[[kernel]] void custom_kernel_mlstm_bwd_pre_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_floats_float_float_float(
  const device float* den [[buffer(0)]],
  const device float* M [[buffer(1)]],
  const device float* h [[buffer(2)]],
  const device float* dh [[buffer(3)]],
  const constant uint32_t& B [[buffer(4)]],
  const constant uint32_t& NH [[buffer(5)]],
  const constant uint32_t& S [[buffer(6)]],
  const constant uint32_t& DV [[buffer(7)]],
  const constant float& eps [[buffer(8)]],
  device float* rN [[buffer(9)]],
  device float* dden [[buffer(10)]],
  device float* dM [[buffer(11)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {

        mlxhog::mlstm_bwd_pre(den, M, h, dh, rN, dden, dM,
                              mlxhog::MlstmShape{B, NH, S, 1, 0, DV}, eps,
                              thread_position_in_grid);
    
}

