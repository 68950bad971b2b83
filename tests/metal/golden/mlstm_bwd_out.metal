[[kernel]] void custom_kernel_mlstm_bwd_out_float_float_float_float_float_float_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float(
  const device float* q [[buffer(0)]],
  const device float* k [[buffer(1)]],
  const device float* v [[buffer(2)]],
  const device float* i [[buffer(3)]],
  const device float* b [[buffer(4)]],
  const device float* C [[buffer(5)]],
  const device float* n [[buffer(6)]],
  const device float* m [[buffer(7)]],
  const device float* M [[buffer(8)]],
  const device float* rN [[buffer(9)]],
  const device float* dden [[buffer(10)]],
  const device float* dh [[buffer(11)]],
  const device float* dC [[buffer(12)]],
  const device float* dn [[buffer(13)]],
  const constant uint32_t& B [[buffer(14)]],
  const constant uint32_t& NH [[buffer(15)]],
  const constant uint32_t& S [[buffer(16)]],
  const constant uint32_t& L [[buffer(17)]],
  const constant uint32_t& DK [[buffer(18)]],
  const constant uint32_t& DV [[buffer(19)]],
  device float* dq [[buffer(20)]],
  device float* dk [[buffer(21)]],
  device float* dv [[buffer(22)]],
  device float* di [[buffer(23)]],
  device float* db [[buffer(24)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]]) {

        threadgroup float weights[mlxhog::kMlstmBackwardWeights];
        static_assert(sizeof(weights) <= 32768, "more than a chip has");
        mlxhog::mlstm_bwd_out(q, k, v, i, b, C, n, m, M, rN, dden, dh, dC, dn, dq, dk, dv, di, db,
                              mlxhog::MlstmShape{B, NH, S, L, DK, DV}, weights,
                              thread_position_in_grid, thread_position_in_threadgroup);
    
}

