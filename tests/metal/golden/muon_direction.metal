[[kernel]] void custom_kernel_muon_direction_float_float_float_floats_uint32_ts_uint32_ts_float(
  const device float* m [[buffer(0)]],
  const device float* g [[buffer(1)]],
  const device float* hp [[buffer(2)]],
  const constant float& grad_scale [[buffer(3)]],
  const constant uint32_t& n [[buffer(4)]],
  const constant uint32_t& offset [[buffer(5)]],
  device float* x_out [[buffer(6)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::muon_direction(m, g, hp, grad_scale, n, offset, x_out, thread_position_in_grid.x);
}

