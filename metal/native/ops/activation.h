// Elementwise operators that other operators compute, too: gated units and the tanh soft cap, of `count` floats.
#pragma once

#include <string>

#include "simd.h"

namespace mlxhog {

enum class Activation { gelu, gelu_tanh, silu, relu, relu_squared, sigmoid, selu, softplus };

Activation activation_named(const std::string& name);

// out = activation(gate) * up
void glu_forward(Activation, Index count, const float* gate, const float* up, float* out, int threads);

// out = cap * tanh(x / cap)
void soft_cap_forward(Index count, float cap, const float* x, float* out, int threads);

}  // namespace mlxhog
