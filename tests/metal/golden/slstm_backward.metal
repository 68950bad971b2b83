[[kernel]] void custom_kernel_slstm_backward_float_float_float_float_float_float_float_int32_t_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float(
  const device float* G [[buffer(0)]],
  const device float* R [[buffer(1)]],
  const device float* bias [[buffer(2)]],
  const device float* h0 [[buffer(3)]],
  const device float* c0 [[buffer(4)]],
  const device float* n0 [[buffer(5)]],
  const device float* m0 [[buffer(6)]],
  const device int32_t* starts [[buffer(7)]],
  const device float* h [[buffer(8)]],
  const device float* c [[buffer(9)]],
  const device float* n [[buffer(10)]],
  const device float* m [[buffer(11)]],
  const device float* dh [[buffer(12)]],
  const device float* dc_last [[buffer(13)]],
  const device float* dn_last [[buffer(14)]],
  const device float* dm_last [[buffer(15)]],
  const constant uint32_t& B [[buffer(16)]],
  const constant uint32_t& S [[buffer(17)]],
  const constant uint32_t& NH [[buffer(18)]],
  const constant uint32_t& DH [[buffer(19)]],
  device float* dG [[buffer(20)]],
  device float* dh0 [[buffer(21)]],
  device float* dc0 [[buffer(22)]],
  device float* dn0 [[buffer(23)]],
  device float* dm0 [[buffer(24)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {

        threadgroup float shared[mlxhog::kSlstmShared];
        static_assert(sizeof(shared) <= 32768, "more threadgroup memory than a chip has");
        mlxhog::slstm_backward(G, R, bias, h0, c0, n0, m0, starts, h, c, n, m, dh, dc_last, dn_last,
                               dm_last, dG, dh0, dc0, dn0, dm0, mlxhog::SlstmShape{B, S, NH, DH},
                               shared, thread_position_in_grid);
    
}

