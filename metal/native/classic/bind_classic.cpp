// Python bindings of the classic problems: the board, the schemes, and the problems with their checks.
//
// The objects point into arrays of their arguments, which `keep_alive` holds.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>
#include <vector>

#include "../ops/shapes.h"
#include "../updates/shared_arrays.h"
#include "completion.h"
#include "cuts.h"
#include "dense.h"
#include "linear.h"
#include "scheme.h"

using namespace nanobind::literals;

namespace mlxhog::classic {
namespace {

template <class T, int kDims>
using Array = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Rows = Array<float, 2>;

// The position of `name` among `known`, which is the value of its enumerator.
template <class Enum, std::size_t kCount>
Enum one_of(const char* what, const std::string& name, const char* const (&known)[kCount]) {
  std::string choices;
  for (std::size_t k = 0; k < kCount; ++k) {
    if (name == known[k]) return static_cast<Enum>(k);
    choices += std::string(k == 0 ? "" : ", ") + known[k];
  }
  require(false, "no ", what, " '", name, "'; choose from ", choices);
  return {};
}

// -- the board and the schemes -------------------------------------------------------------------------

Board board_of(const Bytes& words, std::uint32_t workers) {
  require(words.size() >= Board::bytes(workers) &&
              reinterpret_cast<std::uintptr_t>(words.data()) % alignof(BoardHead) == 0,
          "the board of ", workers, " workers needs ", Board::bytes(workers), " aligned bytes, got ", words.size());
  return Board(reinterpret_cast<BoardHead*>(words.data()), workers);
}

void check_rank(const Board& board, std::uint32_t rank) {
  require(rank < board.workers(), "rank ", rank, " of ", board.workers(), " workers");
}

void make_scheme(Scheme* self, const std::string& name, Bytes words, LocksObject* locks, std::size_t row_word0,
                 std::uint32_t rank, std::uint32_t workers, std::size_t hot, std::size_t period,
                 std::optional<Flat> probe, std::size_t probe_every) {
  const Kind kind = one_of<Kind>(
      "scheme", name, {"private", "racy", "lossless", "hot_cold", "aig", "round_robin", "sync"});
  const Board board = board_of(words, workers);
  check_rank(board, rank);
  const bool takes_locks = kind == Kind::lossless || kind == Kind::hot_cold || kind == Kind::aig;
  require(!takes_locks || locks != nullptr, "scheme '", name, "' needs locks");
  require(!probe || (probe->size() == 1 && probe_every > 0), "probe: wanted one float, for 1 example or more");
  new (self) Scheme{kind, board, locks, row_word0, rank, hot, period,
                    probe ? probe->data() : nullptr, probe_every};
}

// A problem by the shapes of its arrays, with run(scheme, order, gamma, batch=1): checks that need the problem, then
// the run without the GIL.
template <std::size_t kArrays, class Problem, class... P, class... Options>
nb::class_<Problem> bind_problem(nb::module_& m, const char* name, const char* shapes, const char* doc,
                                 Problem (*make)(Sizes&, P...), const Options&... options) {
  const auto checked = [](Problem& problem, Scheme& scheme, IndexArray order, double gamma, std::size_t batch) {
    require(batch > 0, "batch: wanted at least 1 example");
    for (std::size_t i = 0; i < order.size(); ++i) {
      require(order.data()[i] >= 0 && static_cast<std::size_t>(order.data()[i]) < problem.n(), "order[", i, "] is ",
              order.data()[i], "; there are ", problem.n(), " examples");
    }
    require(scheme.locks == nullptr || scheme.row_word0 + problem.words() <= scheme.locks->size(), "the problem's ",
            problem.words(), " rows from lock word ", scheme.row_word0, " on do not fit the lock words");
    std::size_t coordinates = 0;  // that may be in a hot head
    if constexpr (HasHead<Problem>) coordinates = problem.words() * problem.width();
    require(scheme.kind != Kind::hot_cold || (scheme.hot > 0 && scheme.hot <= coordinates), "hot: ", scheme.hot,
            " coordinates of ", coordinates);
    nb::gil_scoped_release nogil;
    return run(scheme, problem, Share{order.data(), order.size(), static_cast<float>(gamma), batch});
  };
  nb::class_<Problem> bound(m, name, doc);
  def_init<kArrays>(bound, name, shapes, make, options...);
  bound.def("run", checked, "scheme"_a, "order"_a.noconvert(), "gamma"_a, "batch"_a = 1,
            "One pass over `order`; returns the examples done, fewer only if stopped.");
  return bound;
}

// -- linear models -------------------------------------------------------------------------------------

Loss loss_of(const std::string& name) { return one_of<Loss>("loss", name, {"hinge", "logistic", "squares"}); }

std::size_t size(const Sizes& sizes, const char* letter) { return static_cast<std::size_t>(sizes[letter]); }

// Every index is checked here, so that the loops may trust it.
SparseLinear make_sparse(Sizes& sizes, float* x, const std::int64_t* indptr, const std::int32_t* indices,
                         const float* values, const float* labels, const float* shrink, const std::string& loss) {
  sizes.expect_positive({"R", "W"});
  sizes.expect({{"P", sizes["N"] + 1}});
  const std::size_t n = size(sizes, "N"), shrunk = size(sizes, "U"), floats = size(sizes, "R") * size(sizes, "W");
  const std::size_t coordinates = shrunk != 0 ? shrunk : floats;
  require(shrunk <= floats, "shrink has more coordinates than x");
  require(indptr[0] == 0 && indptr[n] == sizes["K"], "indptr: wanted 0 first and the number of values last");
  for (std::size_t e = 0; e < n; ++e) {
    require(indptr[e] <= indptr[e + 1] && indptr[e + 1] <= sizes["K"], "indptr descends at row ", e);
    for (std::int64_t k = indptr[e]; k < indptr[e + 1]; ++k) {
      const std::int32_t u = indices[k];
      require(u >= 0 && static_cast<std::size_t>(u) < coordinates, "row ", e, " names coordinate ", u, " of ",
              coordinates);
      require(k == indptr[e] || indices[k - 1] < u, "row ", e, ": indices have to ascend, got ",
              k == indptr[e] ? 0 : indices[k - 1], " before ", u);
    }
  }
  return {x, floats, size(sizes, "W"), {indptr, indices, values, labels, n}, shrunk ? shrink : nullptr, loss_of(loss)};
}

DenseLinear make_dense(Sizes& sizes, float* x, const float* features, const float* labels, const std::string& loss,
                       std::size_t classes) {
  sizes.expect_positive({"R", "W", "N", "D"});
  const std::size_t d = size(sizes, "D"), rows = size(sizes, "R"), floats = rows * size(sizes, "W");
  require(classes > 0 && rows % classes == 0 && floats / classes >= d, "x: wanted for each of ", classes,
          " classes the same number of rows, ", d, " floats or more");
  return {x, floats, size(sizes, "W"), {features, labels, size(sizes, "N"), d}, loss_of(loss), classes};
}

// -- problems on pairs ---------------------------------------------------------------------------------

Pairs checked_pairs(const std::int32_t* table, std::size_t n, std::size_t firsts, std::size_t seconds) {
  const std::size_t limit[2] = {firsts, seconds};
  for (std::size_t k = 0; k < 3 * n; ++k) {
    if (k % 3 == 2) continue;
    require(table[k] >= 0 && static_cast<std::size_t>(table[k]) < limit[k % 3], "example ", k / 3, " names row ",
            table[k], " of ", limit[k % 3]);
  }
  return Pairs(table, n);
}

Completion make_completion(Sizes& sizes, float* left, float* right, const std::int32_t* ratings,
                           const float* shrink_users, const float* shrink_items, std::size_t user_word0,
                           std::size_t item_word0) {
  const std::size_t width = size(sizes, "W"), users = size(sizes, "U"), items = size(sizes, "I");
  require(width > 0 && width % kRowStep == 0, "rows have ", width, " floats; wanted a multiple of ", kRowStep);
  return {left, right, checked_pairs(ratings, size(sizes, "N"), users, items), shrink_users, shrink_items, users, items,
          width, user_word0, item_word0};
}

CutGraph make_cut(Sizes& sizes, float* x, const std::int32_t* edges, const std::uint8_t* fixed, std::size_t word0) {
  sizes.expect_positive({"L"});
  const std::size_t vertices = size(sizes, "V");
  return {x, checked_pairs(edges, size(sizes, "N"), vertices, vertices), fixed, vertices, size(sizes, "L"), word0};
}

void project(Rows rows) {
  require(rows.shape(1) > 0, "rows: wanted at least 1 float in each");
  nb::gil_scoped_release nogil;
  std::vector<float> scratch(rows.shape(1));
  for (std::size_t r = 0; r < rows.shape(0); ++r) {
    project_onto_simplex(rows.data() + r * rows.shape(1), rows.shape(1), scratch.data());
  }
}

}  // namespace
}  // namespace mlxhog::classic

void bind_classic(nanobind::module_& m) {
  using namespace mlxhog;
  using namespace mlxhog::classic;
  nb::class_<Board>(m, "ClassicBoard",
                    "Words that the workers of one classic run share: stop, turns, progress.\n\n"
                    "The layout is the table in metal/native/classic/board.h. `reset` is the host's, while no\n"
                    "worker runs; everything else may be called by any process at any time.")
      .def("__init__", [](Board* self, Bytes words, std::uint32_t workers) { new (self) Board(board_of(words, workers)); },
           "words"_a.noconvert(), "workers"_a, nb::keep_alive<1, 2>())
      .def_static("bytes", &Board::bytes, "workers"_a, "Bytes of the board of this number of workers.")
      .def("reset", &Board::reset, "Before every round: no stop, the first turn; keeps the progress.")
      .def("stop", &Board::stop, "End every loop and every wait.")
      .def_prop_ro("stopped", &Board::stopped)
      .def("examples", [](const Board& self, std::uint32_t rank) { check_rank(self, rank); return self.examples(rank); },
           "rank"_a, "Examples this worker has done so far, over all epochs.");
  nb::class_<Scheme>(m, "ClassicScheme",
                     "One worker's place in a classic run: how it writes and whom it waits for.\n\n"
                     "kinds: private, racy, lossless, hot_cold, aig, round_robin, sync; see\n"
                     "metal/native/classic/scheme.h for what each promises.")
      .def("__init__", &make_scheme, "kind"_a, "words"_a.noconvert(), "locks"_a.none(), "row_word0"_a, "rank"_a,
           "workers"_a, nb::kw_only(), "hot"_a = 8192, "period"_a = 256,
           "probe"_a.noconvert().none() = nb::none(), "probe_every"_a = 1, nb::keep_alive<1, 3>(),
           nb::keep_alive<1, 4>(), nb::keep_alive<1, 10>());
  bind_problem<6>(
      m, "LinearProblem", "x: R W, indptr: P, indices values: K, labels: N, shrink: U",
      "A linear model on sparse rows; x is (rows, width) float32, one lock word per row.",
      &make_sparse, "loss"_a = "hinge");
  bind_problem<3>(
      m, "DenseLinearProblem", "x: R W, features: N D, labels: N",
      "A linear model on dense rows, one-vs-rest for several classes; x is (rows, width)\n"
      "float32, one lock word per row, the same number of rows for each class.",
      &make_dense, "loss"_a = "hinge", "classes"_a = 1);
  m.attr("ROW_STEP") = kRowStep;
  bind_problem<5>(
      m, "CompletionProblem", "users: U W, items: I W, ratings: N 3, shrink_users: U, shrink_items: I",
      "Matrix completion; users and items are (rows, width) float32, ratings (n, 3) int32:\n"
      "user, item and the bits of the float32 rating. See metal/native/classic/completion.h.",
      &make_completion, "users_word0"_a = 0, "items_word0"_a = 0)
      .def("squared_error", &squared_error, nb::call_guard<nb::gil_scoped_release>(),
           "Sum of (L_u . R_v - Z)^2 over all ratings, in float64.");
  m.def("project_onto_simplex", &project, "rows"_a.noconvert(),
        "Replace each row by the nearest point of {x >= 0, sum x = 1}, in place; rows are private.");
  bind_problem<3>(
      m, "CutProblem", "x: V L, edges: N 3, fixed: V",
      "Multiway cut; x is (vertices, labels) float32, or (vertices, 1) for two labels; edges (n, 3)\n"
      "int32: head, tail and the bits of the float32 weight; fixed (vertices,) uint8. See\n"
      "metal/native/classic/cuts.h.",
      &make_cut, "x_word0"_a = 0)
      .def("objective",
           [](const CutGraph& self, Rows x) {
             require(x.shape(0) == self.n_vertices && x.shape(1) == self.labels,
                     "x has another shape than the problem's");
             nb::gil_scoped_release nogil;
             return objective(self, x.data());
           },
           "x"_a.noconvert(), "Sum of w_uv |x_u - x_v|_1 over all edges, in float64.");
}
