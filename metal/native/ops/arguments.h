// The common part of the bindings of the model operators.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <string>

#include "activation.h"
#include "simd.h"

namespace nb = nanobind;

namespace mlxhog {

using In = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

inline Activation activation_named(const std::string& name) {
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  if (name == "relu") return Activation::relu;
  if (name == "relu^2") return Activation::relu_squared;
  if (name == "sigmoid") return Activation::sigmoid;
  if (name == "selu") return Activation::selu;
  if (name == "softplus") return Activation::softplus;
  throw nb::value_error(("no activation is called " + name).c_str());
}

// An argument without conversion: that would hide a slow copy of an input, and write an output into a temporary.
inline auto A(const char* name) { return nb::arg(name).noconvert(); }

}  // namespace mlxhog
