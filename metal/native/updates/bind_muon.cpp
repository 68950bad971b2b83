// Python binding of Muon's orthogonalisation of some matrices, each by one thread.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../ops/buffer.h"
#include "../ops/polar.h"
#include "../ops/pool.h"

namespace nb = nanobind;
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
}
