template <int T>
[[kernel]] void custom_kernel_slstm_forward__1024_float_float_float_float_float_float_float_int32_t_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float(
  const device float* G [[buffer(0)]],
  const device float* R_T [[buffer(1)]],
  const device float* bias [[buffer(2)]],
  const device float* h0 [[buffer(3)]],
  const device float* c0 [[buffer(4)]],
  const device float* n0 [[buffer(5)]],
  const device float* m0 [[buffer(6)]],
  const device int32_t* starts [[buffer(7)]],
  const constant uint32_t& B [[buffer(8)]],
  const constant uint32_t& S [[buffer(9)]],
  const constant uint32_t& NH [[buffer(10)]],
  const constant uint32_t& DH [[buffer(11)]],
  device float* h [[buffer(12)]],
  device float* c [[buffer(13)]],
  device float* n [[buffer(14)]],
  device float* m [[buffer(15)]],
  device float* pre [[buffer(16)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {

        threadgroup float shared_h[T];
        static_assert(sizeof(shared_h) <= 32768, "more threadgroup memory than a chip has");
        mlxhog::slstm_forward(G, R_T, bias, h0, c0, n0, m0, starts, h, c, n, m, pre,
                              mlxhog::SlstmShape{B, S, NH, DH}, shared_h,
                              thread_position_in_grid);
    
}

template [[host_name("custom_kernel_slstm_forward__1024_float_float_float_float_float_float_float_int32_t_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float")]] [[kernel]] decltype(custom_kernel_slstm_forward__1024_float_float_float_float_float_float_float_int32_t_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float<1024>) custom_kernel_slstm_forward__1024_float_float_float_float_float_float_float_int32_t_uint32_ts_uint32_ts_uint32_ts_uint32_ts_float_float_float_float_float<1024>;

