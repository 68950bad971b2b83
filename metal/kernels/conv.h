// Causal depthwise convolution, followed by SiLU where it is asked for, and its gradient. Arrays x (B, P + S, CH),
// whose first P positions are left context, inputs without outputs; y (B, S, CH); weights (CH, 1, K); bias (CH,); back
// (B, S), how many positions before its own an output sees at most: where documents begin, none. Below, t counts from
// the first output.
//
// x, y and their gradients have the type R, float or bfloat; all sums are float.
//
//     pre[t] = bias + sum_d w[K-1-d] x[t - d]      y = pre sigmoid(pre)      dpre = dy sigmoid(pre) (1 + ..)
//     dx[t] = sum_d w[K-1-d] dpre[t + d]           dw[K-1-d] = sum_t dpre[t] x[t - d]       d = 0 .. reach of the output
#pragma once

#include "sigmoid.h"

namespace mlxhog {

enum : uint {
  kConvBlock = 64,  // positions that a thread sums for the gradient of the weights
};

struct ConvShape {
  uint B, S, CH, K, P;
};

inline uint conv_blocks(ConvShape s) { return (s.S + kConvBlock - 1) / kConvBlock; }

// How far back the output t of sequence b sees.
inline uint conv_reach(const device int* back, ConvShape s, uint b, uint t) {
  return min(static_cast<uint>(back[b * s.S + t]), min(s.K - 1, t + s.P));
}

// Where x has channel 0 of the input at t, of sequence b.
inline uint conv_input(ConvShape s, uint b, uint t) { return (b * (s.P + s.S) + s.P + t) * s.CH; }

template <typename R>
inline float conv_pre(const device R* x, const device float* w, const device float* bias, const device int* back,
                      ConvShape s, uint3 id) {
  const uint reach = conv_reach(back, s, id.z, id.y), here = conv_input(s, id.z, id.y) + id.x;
  float sum = bias[id.x];
  for (uint d = 0; d <= reach; ++d) sum += w[id.x * s.K + s.K - 1 - d] * static_cast<float>(x[here - d * s.CH]);
  return sum;
}

// A thread per element, here and in the next two.
template <typename R>
inline void conv_forward(const device R* x, const device float* w, const device float* bias, const device int* back,
                         device R* y, ConvShape s, uint silu, uint3 id) {
  if (id.x >= s.CH || id.y >= s.S || id.z >= s.B) return;
  const float pre = conv_pre(x, w, bias, back, s, id);
  y[(id.z * s.S + id.y) * s.CH + id.x] = static_cast<R>(silu != 0 ? pre * sigmoid(pre) : pre);
}

template <typename R>
inline void conv_bwd_pre(const device R* x, const device float* w, const device float* bias, const device int* back,
                         const device R* dy, device float* dpre, ConvShape s, uint3 id) {
  if (id.x >= s.CH || id.y >= s.S || id.z >= s.B) return;
  const float pre = conv_pre(x, w, bias, back, s, id), gate = sigmoid(pre);
  const uint at = (id.z * s.S + id.y) * s.CH + id.x;
  dpre[at] = static_cast<float>(dy[at]) * gate * (1.0f + pre * (1.0f - gate));
}

// Rows of x, of which the first P are no outputs.
template <typename R>
inline void conv_bwd_input(const device float* w, const device int* back, const device float* dpre, device R* dx,
                           ConvShape s, uint3 id) {
  if (id.x >= s.CH || id.y >= s.P + s.S || id.z >= s.B) return;
  float sum = 0.0f;
  for (uint d = id.y < s.P ? s.P - id.y : 0; d < s.K && id.y + d < s.P + s.S; ++d) {
    const uint t = id.y + d - s.P;  // an output that may see this row
    if (d <= conv_reach(back, s, id.z, t)) sum += w[id.x * s.K + s.K - 1 - d] * dpre[(id.z * s.S + t) * s.CH + id.x];
  }
  dx[(id.z * (s.P + s.S) + id.y) * s.CH + id.x] = static_cast<R>(sum);
}

// A thread per channel and block of positions: part (B, blocks, K + 1, CH), the last row for the bias.
template <typename R>
inline void conv_bwd_partial(const device R* x, const device int* back, const device float* dpre,
                             device float* part, ConvShape s, uint3 id) {
  const uint channel = id.x, block = id.y, b = id.z;
  if (channel >= s.CH || block >= conv_blocks(s) || b >= s.B) return;
  const uint start = block * kConvBlock, end = min(start + kConvBlock, s.S);
  const uint rows = (b * conv_blocks(s) + block) * (s.K + 1);
  for (uint j = 0; j < s.K; ++j) {
    const uint d = s.K - 1 - j;
    float sum = 0.0f;
    for (uint t = start; t < end; ++t)
      if (d <= conv_reach(back, s, b, t))
        sum += dpre[(b * s.S + t) * s.CH + channel] * static_cast<float>(x[conv_input(s, b, t) + channel - d * s.CH]);
    part[(rows + j) * s.CH + channel] = sum;
  }
  float sum = 0.0f;
  for (uint t = start; t < end; ++t) sum += dpre[(b * s.S + t) * s.CH + channel];
  part[(rows + s.K) * s.CH + channel] = sum;
}

// A thread per channel and tap, the last for the bias: sums the parts in their order, so that no atomic is needed
// and every run has the same bits.
inline void conv_bwd_final(const device float* part, device float* dw, device float* dbias, ConvShape s, uint3 id) {
  const uint channel = id.x, tap = id.y;
  if (channel >= s.CH || tap > s.K) return;
  float sum = 0.0f;
  for (uint k = 0; k < s.B * conv_blocks(s); ++k) sum += part[(k * (s.K + 1) + tap) * s.CH + channel];
  if (tap < s.K) dw[channel * s.K + tap] = sum;
  else dbias[channel] = sum;
}

}  // namespace mlxhog
