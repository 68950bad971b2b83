// Several linear maps of one input: y_j = x W_j^T + b_j, and the gradients.
#pragma once

#include <vector>

#include "simd.h"
#include "weight.h"

namespace mlxhog {

// One map: W (out, in), bias (out) or null, y (rows, out); or its gradients: W, dy (rows, out) in `given`, dW (out, in,
// or null) in `written`, and db (out, or null). With `bfloat16` the factors of its products are rounded to that; y, too, if it
// `rounds`.
struct LinearMap {
  Index out;
  Weight weight;
  const float* given;
  float *written, *d_bias = nullptr;
  bool bfloat16 = false, rounds = false;
};

void linears_forward(Index rows, Index in, const float* x, std::vector<LinearMap> maps, int threads);

// dx (rows, in) = sum_j dy_j W_j, if dx is not null; the weight gradients, which alone read x. With `adds` the weight gradient of a single
// map is added to d_weight.
void linears_backward(Index rows, Index in, const float* x, std::vector<LinearMap> maps, float* dx,
                      int threads, bool adds = false);

}  // namespace mlxhog
