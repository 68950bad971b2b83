[[kernel]] void custom_kernel_conv_bwd_partial_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float(
  const device float* x [[buffer(0)]],
  const device float* dpre [[buffer(1)]],
  const constant uint32_t& B [[buffer(2)]],
  const constant uint32_t& S [[buffer(3)]],
  const constant uint32_t& CH [[buffer(4)]],
  const constant uint32_t& K [[buffer(5)]],
  device float* part [[buffer(6)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::conv_bwd_partial(x, dpre, part, mlxhog::ConvShape{B, S, CH, K}, thread_position_in_grid);
}

