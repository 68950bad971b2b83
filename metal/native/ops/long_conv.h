// Causal convolution of every channel with a filter as long as the sequence, directly:
// y[b, t, c] = sum over j <= t of f[c, j] x[b, t - j, c].
//
// Arrays are packed float32: x, y (B, S, C); f (C, J), J >= S. S^2 / 2 products a channel, sixteen channels at once:
// faster than transforms up to about 1,000 positions, and each entry's error is relative to its own terms.
#pragma once

#include "simd.h"

namespace mlxhog {

// Positions up to which transforms are slower.
inline constexpr Index kLongConvDirect = 1024;

struct LongConv {
  Index B, S, C, J;
};

// Work is split over channels.
void long_conv_forward(const LongConv&, const float* x, const float* f, float* y, int threads);

// dx; and df (C, J), 0 from tap S on; likewise.
void long_conv_backward(const LongConv&, const float* x, const float* f, const float* dy, float* dx, float* df,
                        int threads);

}  // namespace mlxhog
