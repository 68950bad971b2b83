[[kernel]] void custom_kernel_muon_direction_float_float_float_floats_uint32_ts_float_float(
  const device float* g [[buffer(0)]],
  const device float* m [[buffer(1)]],
  const device float* hp [[buffer(2)]],
  const constant float& grad_scale [[buffer(3)]],
  const constant uint32_t& n [[buffer(4)]],
  device float* m_out [[buffer(5)]],
  device float* x_out [[buffer(6)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::muon_direction(g, m, hp, grad_scale, n, m_out, x_out, thread_position_in_grid.x);
}

