[[kernel]] void custom_kernel_mlstm_out_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_floats_float_float_float(
  const device float* q [[buffer(0)]],
  const device float* k [[buffer(1)]],
  const device float* v [[buffer(2)]],
  const device float* b [[buffer(3)]],
  const device float* i [[buffer(4)]],
  const device float* C [[buffer(5)]],
  const device float* n [[buffer(6)]],
  const device float* m [[buffer(7)]],
  const constant uint32_t& B [[buffer(8)]],
  const constant uint32_t& NH [[buffer(9)]],
  const constant uint32_t& S [[buffer(10)]],
  const constant uint32_t& L [[buffer(11)]],
  const constant uint32_t& DK [[buffer(12)]],
  const constant uint32_t& DV [[buffer(13)]],
  const constant float& eps [[buffer(14)]],
  device float* h [[buffer(15)]],
  device float* den [[buffer(16)]],
  device float* M [[buffer(17)]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {

        threadgroup float tile[mlxhog::kMlstmOutTile];
        static_assert(sizeof(tile) <= 32768, "more threadgroup memory than a chip has");
        mlxhog::mlstm_out(q, k, v, b, i, C, n, m, h, den, M,
                          mlxhog::MlstmShape{B, NH, S, L, DK, DV}, eps, tile,
                          threadgroup_position_in_grid, thread_position_in_threadgroup);
    
}

