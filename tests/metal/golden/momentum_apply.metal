[[kernel]] void custom_kernel_momentum_apply_float_float_float_uint8_t_float_floats_uint32_ts_uint32_ts_uint32_t(
  const device float* arena [[buffer(0)]],
  const device float* m [[buffer(1)]],
  const device float* g [[buffer(2)]],
  const device uint8_t* decays [[buffer(3)]],
  const device float* hp [[buffer(4)]],
  const constant float& grad_scale [[buffer(5)]],
  const constant uint32_t& n [[buffer(6)]],
  const constant uint32_t& offset [[buffer(7)]],
  device uint32_t* done [[buffer(8)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::momentum_apply(arena, m, g, decays, hp, grad_scale, n, offset, done, thread_position_in_grid.x);
}

