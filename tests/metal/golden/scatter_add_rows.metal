[[kernel]] void custom_kernel_scatter_add_rows_float_int32_t_float_floats_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_t(
  const device float* arena [[buffer(0)]],
  const device int32_t* rows [[buffer(1)]],
  const device float* g [[buffer(2)]],
  const constant float& scale [[buffer(3)]],
  const constant uint32_t& d [[buffer(4)]],
  const constant uint32_t& n_rows [[buffer(5)]],
  const constant uint32_t& height [[buffer(6)]],
  const constant uint32_t& offset [[buffer(7)]],
  device uint32_t* done [[buffer(8)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::scatter_add_rows(arena, rows, g, scale, d, n_rows, height, offset, done, thread_position_in_grid);
}

