// Python bindings of Muon's directions: momentum and orthogonalisation of some matrices, each by one thread.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../ops/buffer.h"
#include "../ops/gemm_bfloat16.h"
#include "../ops/polar.h"
#include "../ops/pool.h"
#include "shared_arrays.h"

using namespace mlxhog;
using namespace nb::literals;

namespace {

using Matrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Given = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Coefficients = std::vector<std::tuple<double, double, double>>;

std::vector<PolarStep> steps_of(const Coefficients& coefficients) {
  if (coefficients.empty()) throw nb::value_error("coefficients are empty: wanted (a, b, c) of one step or more");
  std::vector<PolarStep> steps;
  for (const auto& [a, b, c] : coefficients)
    steps.push_back({static_cast<float>(a), static_cast<float>(b), static_cast<float>(c)});
  return steps;
}

template <class Array>
void check_shapes(const char* name, const std::vector<Array>& arrays, const std::vector<Given>& given) {
  if (arrays.size() != given.size())
    throw nb::value_error((std::string(name) + " and the matrices differ in number").c_str());
  for (std::size_t i = 0; i < given.size(); ++i)
    if (arrays[i].shape(0) != given[i].shape(0) || arrays[i].shape(1) != given[i].shape(1))
      throw nb::value_error(
          (std::string(name) + "[" + std::to_string(i) + "] has another shape than its matrix").c_str());
}

// us[i] = scales[i] * polar(x) for x written by fill(i, x, size), each matrix by one of `threads` threads; or of each
// `rows` rows of x alone, where that is not 0.
template <class Fill>
void orthogonalize(const std::vector<Given>& given, std::vector<Matrix>& us, const std::vector<double>& scales,
                   const Coefficients& coefficients, std::size_t block, bool bfloat16, int threads,
                   const Fill& fill) {
  check_shapes("us", us, given);
  if (scales.size() != given.size()) throw nb::value_error("scales and the matrices differ in number");
  const std::vector<PolarStep> steps = steps_of(coefficients);
  const nb::gil_scoped_release nogil;
  parallel_for(static_cast<Index>(given.size()), threads, [&](Index i) {
    const Index rows = static_cast<Index>(given[i].shape(0)), cols = static_cast<Index>(given[i].shape(1));
    if (rows == 0 || cols == 0) return;
    const Buffer x = uninitialised(rows * cols);
    fill(i, x.get(), static_cast<std::size_t>(rows * cols));
    const Index together = block == 0 ? rows : std::min(rows, static_cast<Index>(block));
    for (Index row = 0; row < rows; row += together)
      polar(std::min(together, rows - row), cols, x.get() + row * cols, us[i].data() + row * cols, steps.data(),
            static_cast<int>(steps.size()), static_cast<float>(scales[i]), bfloat16);
  });
}

}  // namespace

void bind_muon(nb::module_& m) {
  m.def("bfloat16_products", &bfloat16_products, "Whether this processor multiplies bfloat16 faster than float32.");
  m.def("polar",
        [](std::vector<Given> xs, std::vector<Matrix> us, std::vector<double> scales, Coefficients coefficients,
           std::size_t rows, bool bfloat16, int threads) {
          orthogonalize(xs, us, scales, coefficients, rows, bfloat16, threads,
                        [&](Index i, float* x, std::size_t n) { std::copy_n(xs[i].data(), n, x); });
        },
        "xs"_a.noconvert(), "us"_a.noconvert(), "scales"_a, "coefficients"_a, nb::kw_only(), "rows"_a = 0,
        "bfloat16"_a = false, "threads"_a = 1,
        "us[i] = scales[i] * polar(xs[i]), by odd quintics a s + b s^3 + c s^5 of the singular values; or of each `rows` rows alone.");
  m.def("muon_directions",
        [](LocksObject* object, int mode_number, Flat m_flat, std::vector<std::size_t> offsets, std::vector<Given> gs,
           std::vector<Matrix> us, std::vector<double> scales, Coefficients coefficients, double beta1,
           double nesterov, double grad_scale, std::uint64_t seed, std::size_t rows, bool bfloat16, int threads) {
          if (offsets.size() != gs.size()) throw nb::value_error("offsets and the matrices differ in number");
          const Mode mode = mode_of(mode_number);
          Locks* locks = locks_for(object, mode);
          for (std::size_t i = 0; i < gs.size(); ++i) check_dense(m_flat, offsets[i], gs[i].size(), locks, mode);
          const MuonRates rates{static_cast<float>(beta1), static_cast<float>(1.0 - beta1),
                                static_cast<float>(nesterov), static_cast<float>(1.0 - nesterov),
                                static_cast<float>(grad_scale)};
          const auto walk = [&](std::size_t i, float* x) {
            walk_stripes(locks, mode, offsets[i], 0, 0, gs[i].size(), seed,
                         DirectionStep{gs[i].data(), m_flat.data() + offsets[i], x, rates});
          };
          if (mode != Mode::in_turn) {
            orthogonalize(gs, us, scales, coefficients, rows, bfloat16, threads,
                          [&](Index i, float* x, std::size_t) { walk(static_cast<std::size_t>(i), x); });
            return;
          }
          std::vector<Buffer> xs;  // turns have an order, threads have none
          for (std::size_t i = 0; i < gs.size(); ++i) {
            xs.push_back(uninitialised(static_cast<Index>(gs[i].size())));
            const nb::gil_scoped_release nogil;
            walk(i, xs.back().get());
          }
          orthogonalize(gs, us, scales, coefficients, rows, bfloat16, threads, [&](Index i, float* x, std::size_t n) {
            std::copy_n(xs[static_cast<std::size_t>(i)].get(), n, x);
          });
        },
        "locks"_a.none(), "mode"_a, "m_flat"_a.noconvert(), "offsets"_a, "gs"_a.noconvert(), "us"_a.noconvert(),
        "scales"_a, "coefficients"_a, nb::kw_only(), "beta1"_a, "nesterov"_a, "grad_scale"_a = 1.0, "seed"_a = 0,
        "rows"_a = 0, "bfloat16"_a = false, "threads"_a = 1,
        "m is the mean of s = grad_scale * g; us[i] = scales[i] * polar((1 - nesterov) * m + nesterov * s).");
}
