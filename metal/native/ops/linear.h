// Several linear maps of one input: y_j = x W_j^T + b_j, and the gradients.
#pragma once

#include <vector>

#include "simd.h"

namespace mlxhog {

// One map: W (out, in), bias (out) or null, y (rows, out).
struct LinearForward {
  Index out;
  const float *weight, *bias;
  float* y;
};

// One map's gradients: dy (rows, out) in, dW (out, in) and db (out, or null) written.
struct LinearBackward {
  Index out;
  const float *weight, *dy;
  float *d_weight, *d_bias;
};

void linears_forward(Index rows, Index in, const float* x, std::vector<LinearForward> maps, int threads);

// dx (rows, in) = sum_j dy_j W_j, if dx is not null; the weight gradients. With `adds` the weight gradient of a single
// map is added to d_weight.
void linears_backward(Index rows, Index in, const float* x, std::vector<LinearBackward> maps, float* dx,
                      int threads, bool adds = false);

}  // namespace mlxhog
