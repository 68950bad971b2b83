// Causal depthwise convolution followed by SiLU, and its gradient. Arrays x, y (B, S, CH), weights (CH, 1, K), bias
// (CH,); before the start x is 0.
//
//     pre[t] = bias + sum_j w[j] x[t - (K-1) + j]      y = pre sigmoid(pre)      dpre = dy sigmoid(pre) (1 + ..)
//     dx[t] = sum_j w[j] dpre[t + (K-1) - j]           dw[j] = sum_t dpre[t] x[t - (K-1) + j]
#pragma once

#include "sigmoid.h"

namespace mlxhog {

enum : uint {
  kConvBlock = 64,  // positions that a thread sums for the gradient of the weights
};

struct ConvShape {
  uint B, S, CH, K;
};

inline uint conv_blocks(ConvShape s) { return (s.S + kConvBlock - 1) / kConvBlock; }

inline float conv_pre(const device float* x, const device float* w, const device float* bias, ConvShape s, uint3 id) {
  const uint channel = id.x, t = id.y, missing = t + 1 < s.K ? s.K - 1 - t : 0;  // taps before the start
  float sum = bias[channel];
  for (uint j = missing; j < s.K; ++j)
    sum += w[channel * s.K + j] * x[(id.z * s.S + t + j - (s.K - 1)) * s.CH + channel];
  return sum;
}

// A thread per element, here and in the next two.
inline void conv_forward(const device float* x, const device float* w, const device float* bias, device float* y,
                         ConvShape s, uint3 id) {
  if (id.x >= s.CH || id.y >= s.S || id.z >= s.B) return;
  const float pre = conv_pre(x, w, bias, s, id);
  y[(id.z * s.S + id.y) * s.CH + id.x] = pre * sigmoid(pre);
}

inline void conv_bwd_pre(const device float* x, const device float* w, const device float* bias,
                         const device float* dy, device float* dpre, ConvShape s, uint3 id) {
  if (id.x >= s.CH || id.y >= s.S || id.z >= s.B) return;
  const float pre = conv_pre(x, w, bias, s, id), gate = sigmoid(pre);
  const uint at = (id.z * s.S + id.y) * s.CH + id.x;
  dpre[at] = dy[at] * gate * (1.0f + pre * (1.0f - gate));
}

inline void conv_bwd_input(const device float* w, const device float* dpre, device float* dx, ConvShape s,
                           uint3 id) {
  if (id.x >= s.CH || id.y >= s.S || id.z >= s.B) return;
  const uint reached = min(s.K, s.S - id.y);  // outputs that x[t] enters
  float sum = 0.0f;
  for (uint ahead = 0; ahead < reached; ++ahead)
    sum += w[id.x * s.K + s.K - 1 - ahead] * dpre[(id.z * s.S + id.y + ahead) * s.CH + id.x];
  dx[(id.z * s.S + id.y) * s.CH + id.x] = sum;
}

// A thread per channel and block of positions: part (B, blocks, K + 1, CH), the last row for the bias.
inline void conv_bwd_partial(const device float* x, const device float* dpre, device float* part, ConvShape s,
                             uint3 id) {
  const uint channel = id.x, block = id.y, b = id.z;
  if (channel >= s.CH || block >= conv_blocks(s) || b >= s.B) return;
  const uint start = block * kConvBlock, end = min(start + kConvBlock, s.S);
  const uint rows = (b * conv_blocks(s) + block) * (s.K + 1);
  for (uint j = 0; j < s.K; ++j) {
    float sum = 0.0f;
    for (uint t = max(start, s.K - 1 - j); t < end; ++t)
      sum += dpre[(b * s.S + t) * s.CH + channel] * x[(b * s.S + t + j - (s.K - 1)) * s.CH + channel];
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
  if (tap < s.K)
    dw[channel * s.K + tap] = sum;
  else
    dbias[channel] = sum;
}

}  // namespace mlxhog
