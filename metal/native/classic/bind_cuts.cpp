// Python bindings of graph cuts and of the projection onto the simplex.
#include <utility>
#include <vector>

#include "cuts.h"
#include "pair_arrays.h"

using namespace nanobind::literals;

namespace mlxhog::classic {
namespace {

using Flags = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The problem with the arrays it reads, kept alive.
struct CutObject {
  CutObject(Rows x_, PairTable edges_, Flags fixed_, std::size_t word0)
      : x(std::move(x_)),
        edges(std::move(edges_)),
        fixed(std::move(fixed_)),
        core{x.data(), checked_pairs(edges, x.shape(0), x.shape(0)), fixed.data(), x.shape(0), x.shape(1), word0} {
    if (x.shape(1) == 0) wrong("x: wanted rows of 1 float (two labels) or of one float per label");
    check_word("word0", word0);
    check_size("fixed", fixed.size(), core.n_vertices);
  }

  Rows x;
  PairTable edges;
  Flags fixed;
  CutGraph core;
};

void project(Rows rows) {
  if (rows.shape(1) == 0) wrong("rows: wanted at least 1 float in each");
  nb::gil_scoped_release nogil;
  std::vector<float> scratch(rows.shape(1));
  for (std::size_t r = 0; r < rows.shape(0); ++r) {
    project_onto_simplex(rows.data() + r * rows.shape(1), rows.shape(1), scratch.data());
  }
}

}  // namespace
}  // namespace mlxhog::classic

void bind_cuts(nanobind::module_& m) {
  namespace nb = nanobind;
  using namespace mlxhog::classic;
  m.def("project_onto_simplex", &project, "rows"_a.noconvert(),
        "Replace each row by the nearest point of {x >= 0, sum x = 1}, in place; rows are private.");
  nb::class_<CutObject>(m, "CutProblem",
                        "Multiway cut; x is (vertices, labels) float32, or (vertices, 1) for two labels; edges (n, 3)\n"
                        "int32: head, tail and the bits of the float32 weight; fixed (vertices,) uint8. See\n"
                        "metal/native/classic/cuts.h.")
      .def(nb::init<Rows, PairTable, Flags, std::size_t>(), "x"_a.noconvert(), "edges"_a.noconvert(),
           "fixed"_a.noconvert(), nb::kw_only(), "word0"_a = 0)
      .def("run",
           [](CutObject& self, SchemeObject& scheme, mlxhog::Index order, double gamma, std::size_t batch) {
             return run_checked(scheme, self.core, order, gamma, batch);
           },
           "scheme"_a, "order"_a.noconvert(), "gamma"_a, "batch"_a = 1,
           "One pass over `order`; returns the examples done, fewer only if stopped.")
      .def("objective",
           [](const CutObject& self, Rows x) {
             if (x.shape(0) != self.x.shape(0) || x.shape(1) != self.x.shape(1)) {
               wrong("x has another shape than the problem's");
             }
             nb::gil_scoped_release nogil;
             return objective(self.core, x.data());
           },
           "x"_a.noconvert(), "Sum of w_uv |x_u - x_v|_1 over all edges, in float64.");
}
