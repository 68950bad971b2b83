// What the bindings of the model operators share: their array types, and checks of sizes that name the array.
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

template <class Array>
Index size(const Array& a) {
  return static_cast<Index>(a.size());
}

template <class Array>
void expect(const char* name, const Array& a, Index wanted) {
  if (size(a) != wanted)
    throw nb::value_error((std::string(name) + " has " + std::to_string(a.size()) + " elements, expected " +
                           std::to_string(wanted) + "; give every array the shape of its operator's docstring")
                              .c_str());
}

template <class Array>
Index last(const char* name, const Array& a) {
  if (a.ndim() == 0)
    throw nb::value_error((std::string(name) + " is 0-dimensional, expected at least one axis").c_str());
  return static_cast<Index>(a.shape(a.ndim() - 1));
}

template <class Array>
Index rows(const char* name, const Array& a) {
  const Index width = last(name, a);
  if (width) return size(a) / width;
  Index count = 1;
  for (std::size_t j = 0; j + 1 < a.ndim(); ++j) count *= static_cast<Index>(a.shape(j));
  return count;
}

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

template <class Array>
auto data_or_null(const std::optional<Array>& a) -> decltype(a->data()) {
  return a ? a->data() : nullptr;
}

// An argument without conversion: that would hide a slow copy of an input, and write an output into a temporary.
inline auto A(const char* name) { return nb::arg(name).noconvert(); }

}  // namespace mlxhog
