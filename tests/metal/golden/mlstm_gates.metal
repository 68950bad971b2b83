[[kernel]] void custom_kernel_mlstm_gates_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float(
  const device float* i [[buffer(0)]],
  const device float* f [[buffer(1)]],
  const constant uint32_t& B [[buffer(2)]],
  const constant uint32_t& NH [[buffer(3)]],
  const constant uint32_t& S [[buffer(4)]],
  const constant uint32_t& L [[buffer(5)]],
  device float* b [[buffer(6)]],
  device float* a [[buffer(7)]],
  device float* g [[buffer(8)]],
  device float* amax [[buffer(9)]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {

        threadgroup float totals[mlxhog::kMlstmSimdgroups];
        threadgroup float peaks[mlxhog::kMlstmSimdgroups];
        static_assert(sizeof(totals) + sizeof(peaks) <= 32768, "more than a chip has");
        mlxhog::mlstm_gates(i, f, b, a, g, amax, mlxhog::MlstmShape{B, NH, S, L, 0, 0}, totals,
                            peaks, threadgroup_position_in_grid, thread_position_in_threadgroup);
    
}

