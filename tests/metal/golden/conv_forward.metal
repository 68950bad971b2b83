[[kernel]] void custom_kernel_conv_forward_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float(
  const device float* x [[buffer(0)]],
  const device float* w [[buffer(1)]],
  const device float* bias [[buffer(2)]],
  const constant uint32_t& B [[buffer(3)]],
  const constant uint32_t& S [[buffer(4)]],
  const constant uint32_t& CH [[buffer(5)]],
  const constant uint32_t& K [[buffer(6)]],
  device float* y [[buffer(7)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::conv_forward(x, w, bias, y, mlxhog::ConvShape{B, S, CH, K}, thread_position_in_grid);
}

