[[kernel]] void custom_kernel_mlstm_bwd_pre_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_floats_float_float_float_float_float_float(
  const device float* i [[buffer(0)]],
  const device float* b [[buffer(1)]],
  const device float* m [[buffer(2)]],
  const device float* den [[buffer(3)]],
  const device float* M [[buffer(4)]],
  const device float* h [[buffer(5)]],
  const device float* dh [[buffer(6)]],
  const constant uint32_t& B [[buffer(7)]],
  const constant uint32_t& NH [[buffer(8)]],
  const constant uint32_t& S [[buffer(9)]],
  const constant uint32_t& L [[buffer(10)]],
  const constant uint32_t& DK [[buffer(11)]],
  const constant uint32_t& DV [[buffer(12)]],
  const constant float& eps [[buffer(13)]],
  device float* rN [[buffer(14)]],
  device float* dden [[buffer(15)]],
  device float* dM [[buffer(16)]],
  device float* wN [[buffer(17)]],
  device float* we [[buffer(18)]],
  device float* y [[buffer(19)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {

        mlxhog::mlstm_bwd_pre(i, b, m, den, M, h, dh, rN, dden, dM, wN, we, y,
                              mlxhog::MlstmShape{B, NH, S, L, DK, DV}, eps,
                              thread_position_in_grid);
    
}

