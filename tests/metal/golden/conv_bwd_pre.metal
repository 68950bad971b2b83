[[kernel]] void custom_kernel_conv_bwd_pre_float_float_float_int32_t_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float(
  const device float* x [[buffer(0)]],
  const device float* w [[buffer(1)]],
  const device float* bias [[buffer(2)]],
  const device int32_t* back [[buffer(3)]],
  const device float* dy [[buffer(4)]],
  const constant uint32_t& B [[buffer(5)]],
  const constant uint32_t& S [[buffer(6)]],
  const constant uint32_t& CH [[buffer(7)]],
  const constant uint32_t& K [[buffer(8)]],
  const constant uint32_t& P [[buffer(9)]],
  device float* dpre [[buffer(10)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::conv_bwd_pre(x, w, bias, back, dy, dpre, mlxhog::ConvShape{B, S, CH, K, P}, thread_position_in_grid);
}

