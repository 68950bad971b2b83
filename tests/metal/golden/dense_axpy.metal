[[kernel]] void custom_kernel_dense_axpy_float_float_floats_uint32_ts_uint32_ts_uint32_t(
  const device float* arena [[buffer(0)]],
  const device float* g [[buffer(1)]],
  const constant float& scale [[buffer(2)]],
  const constant uint32_t& n [[buffer(3)]],
  const constant uint32_t& offset [[buffer(4)]],
  device uint32_t* done [[buffer(5)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::dense_axpy(arena, g, scale, n, offset, done, thread_position_in_grid.x);
}

