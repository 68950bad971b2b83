[[kernel]] void custom_kernel_conv_bwd_pre_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float(
  const device float* x [[buffer(0)]],
  const device float* w [[buffer(1)]],
  const device float* bias [[buffer(2)]],
  const device float* dy [[buffer(3)]],
  const constant uint32_t& B [[buffer(4)]],
  const constant uint32_t& S [[buffer(5)]],
  const constant uint32_t& CH [[buffer(6)]],
  const constant uint32_t& K [[buffer(7)]],
  device float* dpre [[buffer(8)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::conv_bwd_pre(x, w, bias, dy, dpre, mlxhog::ConvShape{B, S, CH, K}, thread_position_in_grid);
}

