// Elementwise operators: activations, SwiGLU and the tanh soft cap. All arrays hold `count` packed floats.
#pragma once

#include "simd.h"

namespace mlxhog {

// out = silu(gate) * up
void swiglu_forward(Index count, const float* gate, const float* up, float* out, int threads);

void swiglu_backward(Index count, const float* gate, const float* up, const float* d_out, float* d_gate,
                     float* d_up, int threads);

enum class Activation { gelu, gelu_tanh, silu, relu, relu_squared, sigmoid, selu, softplus };

// out = activation(x)
void activate_forward(Activation, Index count, const float* x, float* out, int threads);

void activate_backward(Activation, Index count, const float* x, const float* d_out, float* dx, int threads);

// out = activation(gate) * up
void glu_forward(Activation, Index count, const float* gate, const float* up, float* out, int threads);

void glu_backward(Activation, Index count, const float* gate, const float* up, const float* d_out, float* d_gate,
                  float* d_up, int threads);

// out = cap * tanh(x / cap)
void soft_cap_forward(Index count, float cap, const float* x, float* out, int threads);

// dx = d_out * (1 - (out / cap)^2), from the result of the forward pass
void soft_cap_backward(Index count, float cap, const float* out, const float* d_out, float* dx, int threads);

}  // namespace mlxhog
