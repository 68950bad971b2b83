[[kernel]] void custom_kernel_nonfinite_count_float_uint32_t_uint32_ts_uint32_t(
  const device float* g [[buffer(0)]],
  const device uint32_t* found [[buffer(1)]],
  const constant uint32_t& n [[buffer(2)]],
  device uint32_t* done [[buffer(3)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::nonfinite_count(g, found, n, done, thread_position_in_grid.x);
}

