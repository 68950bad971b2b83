[[kernel]] void custom_kernel_version_bump_uint32_t_int32_t_uint32_ts_uint32_ts_uint32_t(
  const device uint32_t* counters [[buffer(0)]],
  const device int32_t* blocks [[buffer(1)]],
  const constant uint32_t& n [[buffer(2)]],
  const constant uint32_t& n_counters [[buffer(3)]],
  device uint32_t* done [[buffer(4)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::version_bump(counters, blocks, n, n_counters, done, thread_position_in_grid.x);
}

