[[kernel]] void custom_kernel_conv_bwd_final_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float(
  const device float* part [[buffer(0)]],
  const constant uint32_t& B [[buffer(1)]],
  const constant uint32_t& S [[buffer(2)]],
  const constant uint32_t& CH [[buffer(3)]],
  const constant uint32_t& K [[buffer(4)]],
  const constant uint32_t& P [[buffer(5)]],
  device float* dw [[buffer(6)]],
  device float* dbias [[buffer(7)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::conv_bwd_final(part, dw, dbias, mlxhog::ConvShape{B, S, CH, K, P}, thread_position_in_grid);
}

