[[kernel]] void custom_kernel_dense_axpy_nz_float_float_uint32_t_floats_uint32_ts_uint32_ts_uint32_t(
  const device float* arena [[buffer(0)]],
  const device float* g [[buffer(1)]],
  const device uint32_t* added [[buffer(2)]],
  const constant float& scale [[buffer(3)]],
  const constant uint32_t& n [[buffer(4)]],
  const constant uint32_t& offset [[buffer(5)]],
  device uint32_t* done [[buffer(6)]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::dense_axpy_nz(arena, g, added, scale, n, offset, done, thread_position_in_grid.x, thread_index_in_simdgroup);
}

