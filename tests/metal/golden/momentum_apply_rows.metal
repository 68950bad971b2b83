[[kernel]] void custom_kernel_momentum_apply_rows_float_float_int32_t_float_uint8_t_float_floats_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_t(
  const device float* arena [[buffer(0)]],
  const device float* m [[buffer(1)]],
  const device int32_t* rows [[buffer(2)]],
  const device float* g [[buffer(3)]],
  const device uint8_t* decays [[buffer(4)]],
  const device float* hp [[buffer(5)]],
  const constant float& grad_scale [[buffer(6)]],
  const constant uint32_t& d [[buffer(7)]],
  const constant uint32_t& n_rows [[buffer(8)]],
  const constant uint32_t& height [[buffer(9)]],
  const constant uint32_t& offset [[buffer(10)]],
  device uint32_t* done [[buffer(11)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::momentum_apply_rows(arena, m, rows, g, decays, hp, grad_scale, d, n_rows, height, offset, done, thread_position_in_grid);
}

