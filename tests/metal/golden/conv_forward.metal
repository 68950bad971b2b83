[[kernel]] void custom_kernel_conv_forward_float_float_float_int32_t_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float(
  const device float* x [[buffer(0)]],
  const device float* w [[buffer(1)]],
  const device float* bias [[buffer(2)]],
  const device int32_t* back [[buffer(3)]],
  const constant uint32_t& B [[buffer(4)]],
  const constant uint32_t& S [[buffer(5)]],
  const constant uint32_t& CH [[buffer(6)]],
  const constant uint32_t& K [[buffer(7)]],
  const constant uint32_t& P [[buffer(8)]],
  const constant uint32_t& silu [[buffer(9)]],
  device float* y [[buffer(10)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::conv_forward(x, w, bias, back, y, mlxhog::ConvShape{B, S, CH, K, P}, silu, thread_position_in_grid);
}

