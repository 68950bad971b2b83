[[kernel]] void custom_kernel_channel_scale_apply_float_float_float_floats_floats_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_t(
  const device float* arena [[buffer(0)]],
  const device float* g [[buffer(1)]],
  const device float* s [[buffer(2)]],
  const constant float& coef [[buffer(3)]],
  const constant float& decay [[buffer(4)]],
  const constant uint32_t& cols [[buffer(5)]],
  const constant uint32_t& row_step [[buffer(6)]],
  const constant uint32_t& col_step [[buffer(7)]],
  const constant uint32_t& n [[buffer(8)]],
  const constant uint32_t& offset [[buffer(9)]],
  device uint32_t* done [[buffer(10)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::channel_scale_apply(arena, g, s, coef, decay, cols, row_step, col_step, n, offset, done, thread_position_in_grid.x);
}

