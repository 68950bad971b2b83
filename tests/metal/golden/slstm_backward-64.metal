template <int T>
[[kernel]] void custom_kernel_slstm_backward__64_float_float_float_float_int32_t_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float(
  const device float* R [[buffer(0)]],
  const device float* c0 [[buffer(1)]],
  const device float* n0 [[buffer(2)]],
  const device float* m0 [[buffer(3)]],
  const device int32_t* starts [[buffer(4)]],
  const device float* c [[buffer(5)]],
  const device float* n [[buffer(6)]],
  const device float* m [[buffer(7)]],
  const device float* pre [[buffer(8)]],
  const device float* dh [[buffer(9)]],
  const device float* dc_last [[buffer(10)]],
  const device float* dn_last [[buffer(11)]],
  const device float* dm_last [[buffer(12)]],
  const constant uint32_t& B [[buffer(13)]],
  const constant uint32_t& S [[buffer(14)]],
  const constant uint32_t& NH [[buffer(15)]],
  const constant uint32_t& DH [[buffer(16)]],
  device float* dG [[buffer(17)]],
  device float* dh0 [[buffer(18)]],
  device float* dc0 [[buffer(19)]],
  device float* dn0 [[buffer(20)]],
  device float* dm0 [[buffer(21)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {

        threadgroup float shared_dG[4 * T];
        static_assert(sizeof(shared_dG) <= 32768, "more threadgroup memory than a chip has");
        mlxhog::slstm_backward(R, c0, n0, m0, starts, c, n, m, pre, dh, dc_last, dn_last, dm_last,
                               dG, dh0, dc0, dn0, dm0, mlxhog::SlstmShape{B, S, NH, DH}, shared_dG,
                               thread_position_in_grid);
    
}

template [[host_name("custom_kernel_slstm_backward__64_float_float_float_float_int32_t_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float")]] [[kernel]] decltype(custom_kernel_slstm_backward__64_float_float_float_float_int32_t_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float<64>) custom_kernel_slstm_backward__64_float_float_float_float_int32_t_float_float_float_float_float_float_float_float_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float<64>;

