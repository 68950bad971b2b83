// Python bindings of the problems on pairs: matrix completion, graph cuts and the projection onto the simplex.
#include <string>
#include <utility>
#include <vector>

#include "completion.h"
#include "cuts.h"
#include "pairs.h"
#include "row.h"
#include "scheme_object.h"

using namespace nanobind::literals;

namespace mlxhog::classic {
namespace {

using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using PairTable = nb::ndarray<const std::int32_t, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;

// Checked once, so that the loops may trust every row number.
Pairs checked_pairs(const PairTable& table, std::size_t firsts, std::size_t seconds) {
  const std::size_t n = table.shape(0);
  for (std::size_t e = 0; e < n; ++e) {
    const std::size_t limit[2] = {firsts, seconds};
    for (std::size_t end = 0; end < 2; ++end) {
      const std::int32_t row = table.data()[3 * e + end];
      if (row < 0 || static_cast<std::size_t>(row) >= limit[end]) {
        wrong("example " + std::to_string(e) + " names row " + std::to_string(row) + " of " +
              std::to_string(limit[end]));
      }
    }
  }
  return Pairs(table.data(), n);
}

// A first lock word so large that the last row's number would wrap belongs to no arena.
void check_word(const char* name, std::size_t word) {
  if (word > std::size_t{1} << 62) wrong(std::string(name) + " is " + std::to_string(word) + ": an arena has fewer lock words");
}

void check_size(const char* name, std::size_t got, std::size_t wanted) {
  if (got != wanted) {
    wrong(std::string(name) + " has " + std::to_string(got) + " entries; wanted " + std::to_string(wanted));
  }
}

// Matrix completion with the arrays it reads, kept alive.
struct CompletionObject {
  CompletionObject(Rows left_, Rows right_, PairTable ratings_, Floats shrink_users_, Floats shrink_items_,
                   double longest, std::size_t user_word0, std::size_t item_word0)
      : left(std::move(left_)),
        right(std::move(right_)),
        ratings(std::move(ratings_)),
        shrink_users(std::move(shrink_users_)),
        shrink_items(std::move(shrink_items_)),
        core{left.data(),
             right.data(),
             checked_pairs(ratings, left.shape(0), right.shape(0)),
             shrink_users.data(),
             shrink_items.data(),
             left.shape(0),
             right.shape(0),
             left.shape(1),
             static_cast<float>(longest),
             user_word0,
             item_word0} {
    if (core.width == 0 || core.width % kRowStep != 0 || right.shape(1) != core.width) {
      wrong("rows have " + std::to_string(left.shape(1)) + " and " + std::to_string(right.shape(1)) +
            " floats; wanted one multiple of " + std::to_string(kRowStep));
    }
    check_word("user_word0", user_word0);
    check_word("item_word0", item_word0);
    check_size("shrink_users", shrink_users.size(), core.n_users);
    check_size("shrink_items", shrink_items.size(), core.n_items);
    if (!(longest >= 0.0)) wrong("longest: wanted a length, or 0 for any");
  }

  Rows left, right;
  PairTable ratings;
  Floats shrink_users, shrink_items;
  Completion core;
};

// A graph cut with the arrays it reads, kept alive.
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

void bind_pairs(nanobind::module_& m) {
  namespace nb = nanobind;
  using namespace mlxhog::classic;
  m.attr("ROW_STEP") = kRowStep;
  nb::class_<CompletionObject> completion(
      m, "CompletionProblem",
      "Matrix completion; left and right are (rows, width) float32, ratings (n, 3) int32:\n"
      "user, item and the bits of the float32 rating. See metal/native/classic/completion.h.");
  completion
      .def(nb::init<Rows, Rows, PairTable, Floats, Floats, double, std::size_t, std::size_t>(), "left"_a.noconvert(),
           "right"_a.noconvert(), "ratings"_a.noconvert(), "shrink_users"_a.noconvert(),
           "shrink_items"_a.noconvert(), nb::kw_only(), "longest"_a = 0.0, "user_word0"_a = 0, "item_word0"_a = 0)
      .def("squared_error",
           [](const CompletionObject& self) {
             nb::gil_scoped_release nogil;
             return squared_error(self.core);
           },
           "Sum of (L_u . R_v - Z)^2 over all ratings, in float64.");
  bind_run(completion);

  m.def("project_onto_simplex", &project, "rows"_a.noconvert(),
        "Replace each row by the nearest point of {x >= 0, sum x = 1}, in place; rows are private.");
  nb::class_<CutObject> cuts(
      m, "CutProblem",
      "Multiway cut; x is (vertices, labels) float32, or (vertices, 1) for two labels; edges (n, 3)\n"
      "int32: head, tail and the bits of the float32 weight; fixed (vertices,) uint8. See\n"
      "metal/native/classic/cuts.h.");
  cuts.def(nb::init<Rows, PairTable, Flags, std::size_t>(), "x"_a.noconvert(), "edges"_a.noconvert(),
           "fixed"_a.noconvert(), nb::kw_only(), "word0"_a = 0)
      .def("objective",
           [](const CutObject& self, Rows x) {
             if (x.shape(0) != self.x.shape(0) || x.shape(1) != self.x.shape(1)) {
               wrong("x has another shape than the problem's");
             }
             nb::gil_scoped_release nogil;
             return objective(self.core, x.data());
           },
           "x"_a.noconvert(), "Sum of w_uv |x_u - x_v|_1 over all edges, in float64.");
  bind_run(cuts);
}
