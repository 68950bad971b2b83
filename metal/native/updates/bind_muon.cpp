// Python bindings of Muon: directions of some matrices, and their orthogonalisation, each by one thread.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../ops/buffer.h"
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

void check_shapes(const char* name, const std::vector<Matrix>& arrays, const std::vector<Given>& given) {
  if (arrays.size() != given.size())
    throw nb::value_error((std::string(name) + " and the matrices differ in number").c_str());
  for (std::size_t i = 0; i < given.size(); ++i)
    if (arrays[i].shape(0) != given[i].shape(0) || arrays[i].shape(1) != given[i].shape(1))
      throw nb::value_error(
          (std::string(name) + "[" + std::to_string(i) + "] has another shape than its matrix").c_str());
}

}  // namespace

void bind_muon(nb::module_& m) {
  m.def("polar",
        [](std::vector<Given> xs, std::vector<Matrix> us, std::vector<double> scales, Coefficients coefficients,
           std::size_t rows, int threads) {
          check_shapes("us", us, xs);
          if (scales.size() != xs.size()) throw nb::value_error("scales and the matrices differ in number");
          const std::vector<PolarStep> steps = steps_of(coefficients);
          const nb::gil_scoped_release nogil;
          parallel_for(static_cast<Index>(xs.size()), threads, [&](Index i) {
            const Index height = static_cast<Index>(xs[i].shape(0)), cols = static_cast<Index>(xs[i].shape(1));
            if (height == 0 || cols == 0) return;
            const Buffer x = uninitialised(height * cols);  // is scaled on the way
            std::copy_n(xs[i].data(), height * cols, x.get());
            const Index together = rows == 0 ? height : std::min(height, static_cast<Index>(rows));
            for (Index row = 0; row < height; row += together)
              polar(std::min(together, height - row), cols, x.get() + row * cols, us[i].data() + row * cols,
                    steps.data(), static_cast<int>(steps.size()), static_cast<float>(scales[i]));
          });
        },
        "xs"_a.noconvert(), "us"_a.noconvert(), "scales"_a, "coefficients"_a, nb::kw_only(), "rows"_a = 0,
        "threads"_a = 1,
        "us[i] = scales[i] * polar(xs[i]), by odd quintics a s + b s^3 + c s^5 of the singular values; or of each `rows` "
        "rows alone. us[i] may be xs[i].");
  m.def("muon_directions",
        [](LocksObject* object, int mode_number, Flat m_flat, std::vector<std::size_t> offsets, std::vector<Given> gs,
           std::vector<Matrix> xs, Rates hp, double grad_scale, std::uint64_t seed, int threads) {
          check_shapes("xs", xs, gs);
          if (offsets.size() != gs.size()) throw nb::value_error("offsets and the matrices differ in number");
          const Mode mode = mode_of(mode_number);
          Locks* locks = locks_for(object, mode);
          for (std::size_t i = 0; i < gs.size(); ++i) check_dense(m_flat, offsets[i], gs[i].size(), locks, mode);
          const float* rates = check_rates(hp);
          if (mode == Mode::in_turn) threads = 1;  // turns have an order, threads have none
          const nb::gil_scoped_release nogil;
          parallel_for(static_cast<Index>(gs.size()), threads, [&](Index i) {
            walk_stripes(locks, mode, offsets[i], 0, 0, gs[i].size(), seed,
                         DirectionStep{gs[i].data(), m_flat.data() + offsets[i], xs[i].data(), rates,
                                       static_cast<float>(grad_scale)});
          });
        },
        "locks"_a.none(), "mode"_a, "m_flat"_a.noconvert(), "offsets"_a, "gs"_a.noconvert(), "xs"_a.noconvert(),
        "hp"_a.noconvert(), nb::kw_only(), "grad_scale"_a = 1.0, "seed"_a = 0, "threads"_a = 1,
        "m is the mean of s = grad_scale * g; xs[i] = (1 - nesterov) * m + nesterov * s.");
}
