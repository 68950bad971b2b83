template <typename T>
[[kernel]] void custom_kernel_packed16_add__float16_t_uint32_t_uint32_t_uint32_t_uint32_ts_uint32_ts_uint32_t(
  const device uint32_t* arena [[buffer(0)]],
  const device uint32_t* g [[buffer(1)]],
  const device uint32_t* failures [[buffer(2)]],
  const constant uint32_t& n_words [[buffer(3)]],
  const constant uint32_t& offset [[buffer(4)]],
  device uint32_t* done [[buffer(5)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
mlxhog::packed16_add<T>(arena, g, failures, n_words, offset, done, thread_position_in_grid.x);
}

template [[host_name("custom_kernel_packed16_add__float16_t_uint32_t_uint32_t_uint32_t_uint32_ts_uint32_ts_uint32_t")]] [[kernel]] decltype(custom_kernel_packed16_add__float16_t_uint32_t_uint32_t_uint32_t_uint32_ts_uint32_ts_uint32_t<float16_t>) custom_kernel_packed16_add__float16_t_uint32_t_uint32_t_uint32_t_uint32_ts_uint32_ts_uint32_t<float16_t>;

