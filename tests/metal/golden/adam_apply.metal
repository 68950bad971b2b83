[[kernel]] void custom_kernel_adam_apply_float_float_float_float_uint8_t_float_floats_uint32_ts_uint32_ts_float_float(
  const device float* arena [[buffer(0)]],
  const device float* g [[buffer(1)]],
  const device float* m [[buffer(2)]],
  const device float* v [[buffer(3)]],
  const device uint8_t* decays [[buffer(4)]],
  const device float* hp [[buffer(5)]],
  const constant float& grad_scale [[buffer(6)]],
  const constant uint32_t& n [[buffer(7)]],
  const constant uint32_t& offset [[buffer(8)]],
  device float* m_out [[buffer(9)]],
  device float* v_out [[buffer(10)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::adam_apply(arena, g, m, v, decays, hp, grad_scale, n, offset, m_out, v_out, thread_position_in_grid.x);
}

