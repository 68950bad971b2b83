[[kernel]] void custom_kernel_adam_apply_float_float_float_float_uint8_t_float_floats_uint32_ts_uint32_ts_uint32_t(
  const device float* arena [[buffer(0)]],
  const device float* m [[buffer(1)]],
  const device float* v [[buffer(2)]],
  const device float* g [[buffer(3)]],
  const device uint8_t* decays [[buffer(4)]],
  const device float* hp [[buffer(5)]],
  const constant float& grad_scale [[buffer(6)]],
  const constant uint32_t& n [[buffer(7)]],
  const constant uint32_t& offset [[buffer(8)]],
  device uint32_t* done [[buffer(9)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::adam_apply(arena, m, v, g, decays, hp, grad_scale, n, offset, done, thread_position_in_grid.x);
}

