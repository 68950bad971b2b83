[[kernel]] void custom_kernel_clip_scale_float_floats_float(
  const device float* norm [[buffer(0)]],
  const constant float& max_norm [[buffer(1)]],
  device float* scale [[buffer(2)]]) {
mlxhog::clip_scale(norm, max_norm, scale);
}

