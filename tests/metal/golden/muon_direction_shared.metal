[[kernel]] void custom_kernel_muon_direction_shared_float_uint32_t_float_float_floats_uint32_ts_uint32_ts_float(
  const device float* m [[buffer(0)]],
  const device uint32_t* failures [[buffer(1)]],
  const device float* g [[buffer(2)]],
  const device float* hp [[buffer(3)]],
  const constant float& grad_scale [[buffer(4)]],
  const constant uint32_t& n [[buffer(5)]],
  const constant uint32_t& offset [[buffer(6)]],
  device float* x_out [[buffer(7)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::muon_direction_shared(m, failures, g, hp, grad_scale, n, offset, x_out, thread_position_in_grid.x);
}

