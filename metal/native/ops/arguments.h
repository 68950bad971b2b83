// The common part of the bindings of the model operators: array types, and checks of sizes that name the array.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <initializer_list>
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

// A number of elements that no array has is an error, not the number that is left of it modulo 2^64.
inline Index product(std::initializer_list<Index> factors) {
  Index all = 1;
  bool overflows = false, none = false;
  for (const Index factor : factors) {
    overflows |= __builtin_mul_overflow(all, factor, &all);
    none |= factor == 0;
  }
  if (none) return 0;
  if (overflows) throw nb::value_error("the shapes of the arguments ask for arrays of more than 2^63 elements");
  return all;
}

template <class Array>
void expect(const char* name, const Array& a, std::initializer_list<Index> factors) {
  expect(name, a, product(factors));
}

// Arrays without elements may have axes of any length, and a loop over these would not end.
inline constexpr Index kMostEmpty = Index{1} << 24;

template <class Array>
void expect_short(const Array& a) {
  if (a.size() != 0) return;
  Index count = 1;
  for (std::size_t j = 0; j < a.ndim(); ++j) {
    const Index length = static_cast<Index>(a.shape(j));
    if (length == 0) continue;
    if (length > kMostEmpty / count)
      throw nb::value_error(("an array without elements has an axis of " + std::to_string(length) +
                             "; the other axes may have " + std::to_string(kMostEmpty) + " places at most")
                                .c_str());
    count *= length;
  }
}

template <class Array>
Index axis(const Array& a, std::size_t j) {
  expect_short(a);
  return static_cast<Index>(a.shape(j));
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
  expect_short(a);
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
