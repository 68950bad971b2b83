// Python bindings of the directions that optimizers with private state take.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cmath>
#include <initializer_list>
#include <string>
#include <utility>

#include "directions.h"

namespace nb = nanobind;
using namespace mlxhog;
using namespace nb::literals;

namespace {

using Gradient = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using State = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

void check_sizes(const Gradient& g, std::initializer_list<std::pair<const char*, const State*>> arrays) {
  for (const auto& [name, array] : arrays)
    if (array->size() != g.size())
      throw nb::value_error((std::string(name) + " has " + std::to_string(array->size()) + " floats, its gradient " +
                             std::to_string(g.size()))
                                .c_str());
}

float single(double x) { return static_cast<float>(x); }

}  // namespace

void bind_directions(nb::module_& m) {
  m.def("adam_direction",
        [](Gradient g, State m, State v, State u, double beta1, double beta2, double eps, double factor,
           double grad_scale) {
          check_sizes(g, {{"m", &m}, {"v", &v}, {"u", &u}});
          const AdamDirectionRates rates{single(beta1), single(1.0 - beta1), single(beta2),     single(1.0 - beta2),
                                         single(eps),   single(factor),      single(grad_scale)};
          const nb::gil_scoped_release nogil;
          mlxhog_adam_direction(g.data(), m.data(), v.data(), u.data(), g.size(), &rates);
        },
        "g"_a.noconvert(), "m"_a.noconvert(), "v"_a.noconvert(), "u"_a.noconvert(), nb::kw_only(), "beta1"_a,
        "beta2"_a, "eps"_a, "factor"_a = 1.0, "grad_scale"_a = 1.0,
        "m, v are the means of s = grad_scale * g and of s * s; u = factor * m / (sqrt(v) + eps).");
  m.def("lion_direction",
        [](Gradient g, State m, State u, double beta1, double beta2, double grad_scale) {
          check_sizes(g, {{"m", &m}, {"u", &u}});
          const LionRates rates{single(beta1), single(1.0 - beta1), single(beta2), single(1.0 - beta2),
                                single(grad_scale)};
          const nb::gil_scoped_release nogil;
          mlxhog_lion_direction(g.data(), m.data(), u.data(), g.size(), &rates);
        },
        "g"_a.noconvert(), "m"_a.noconvert(), "u"_a.noconvert(), nb::kw_only(), "beta1"_a, "beta2"_a,
        "grad_scale"_a = 1.0,
        "u = sign(beta1 * m + (1 - beta1) * s) with s = grad_scale * g; then m is the mean of s by beta2.");
  m.def("adan_direction",
        [](Gradient g, State m, State diff, State v, State prev, State u, double beta1, double beta2, double beta3,
           double bias1, double bias2, double bias3, double eps, double grad_scale, bool first) {
          check_sizes(g, {{"m", &m}, {"diff", &diff}, {"v", &v}, {"prev", &prev}, {"u", &u}});
          const AdanRates rates{single(beta1),       single(1.0 - beta1),
                                single(beta2),       single(1.0 - beta2),
                                single(beta3),       single(1.0 - beta3),
                                single(1.0 / bias1), single(beta3 / bias3),
                                single(1.0 / std::sqrt(bias2)),
                                single(eps),         single(grad_scale),
                                first};
          const nb::gil_scoped_release nogil;
          mlxhog_adan_direction(g.data(), m.data(), diff.data(), v.data(), prev.data(), u.data(), g.size(), &rates);
        },
        "g"_a.noconvert(), "m"_a.noconvert(), "diff"_a.noconvert(), "v"_a.noconvert(), "prev"_a.noconvert(),
        "u"_a.noconvert(), nb::kw_only(), "beta1"_a, "beta2"_a, "beta3"_a, "bias1"_a, "bias2"_a, "bias3"_a, "eps"_a,
        "grad_scale"_a = 1.0, "first"_a = false,
        "Adan's direction u from the means of s, of s - prev, and of (s + beta3 * (s - prev))^2, s = grad_scale * g.");
}
