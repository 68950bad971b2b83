[[kernel]] void custom_kernel_mlstm_states_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float(
  const device float* k [[buffer(0)]],
  const device float* v [[buffer(1)]],
  const device float* a [[buffer(2)]],
  const device float* g [[buffer(3)]],
  const device float* amax [[buffer(4)]],
  const device float* C0 [[buffer(5)]],
  const device float* n0 [[buffer(6)]],
  const device float* m0 [[buffer(7)]],
  const constant uint32_t& B [[buffer(8)]],
  const constant uint32_t& NH [[buffer(9)]],
  const constant uint32_t& S [[buffer(10)]],
  const constant uint32_t& L [[buffer(11)]],
  const constant uint32_t& DK [[buffer(12)]],
  const constant uint32_t& DV [[buffer(13)]],
  device float* C [[buffer(14)]],
  device float* n [[buffer(15)]],
  device float* m [[buffer(16)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {

        mlxhog::mlstm_states(k, v, a, g, amax, C0, n0, m0, C, n, m,
                             mlxhog::MlstmShape{B, NH, S, L, DK, DV}, thread_position_in_grid);
    
}

