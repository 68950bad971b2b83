[[kernel]] void custom_kernel_conv_bwd_input_float_int32_t_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float(
  const device float* w [[buffer(0)]],
  const device int32_t* back [[buffer(1)]],
  const device float* dpre [[buffer(2)]],
  const constant uint32_t& B [[buffer(3)]],
  const constant uint32_t& S [[buffer(4)]],
  const constant uint32_t& CH [[buffer(5)]],
  const constant uint32_t& K [[buffer(6)]],
  const constant uint32_t& P [[buffer(7)]],
  device float* dx [[buffer(8)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::conv_bwd_input(w, back, dpre, dx, mlxhog::ConvShape{B, S, CH, K, P}, thread_position_in_grid);
}

