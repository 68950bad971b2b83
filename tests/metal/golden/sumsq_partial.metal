[[kernel]] void custom_kernel_sumsq_partial_float_uint32_ts_float(
  const device float* g [[buffer(0)]],
  const constant uint32_t& n [[buffer(1)]],
  device float* part [[buffer(2)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
threadgroup float sums[8];
static_assert(sizeof(sums) <= 32768, "too much memory");
mlxhog::sumsq_partial(g, n, part, sums, threadgroup_position_in_grid.x, thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup);
}

