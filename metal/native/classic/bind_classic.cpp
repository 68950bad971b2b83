// Python bindings of the classic problems: the board, the schemes, and the problems with their checks.
//
// The objects point into arrays of their arguments, which `keep_alive` holds.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cmath>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

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
using Bytes = Array<std::uint8_t, 1>;
using Rows = Array<float, 2>;
using Matrix = Array<const float, 2>;
using Floats = Array<const float, 1>;
using Pointers = Array<const std::int64_t, 1>;
using Flags = Array<const std::uint8_t, 1>;
using PairTable = nb::ndarray<const std::int32_t, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;

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
  require(workers > 0, "workers: wanted at least 1");
  require(words.size() >= Board::bytes(workers), "the board of ", workers, " workers needs ", Board::bytes(workers),
          " bytes, got ", words.size());
  require(reinterpret_cast<std::uintptr_t>(words.data()) % alignof(BoardHead) == 0,
          "the board's bytes are not aligned to 128 bytes");
  return Board(reinterpret_cast<BoardHead*>(words.data()), workers);
}

void check_rank(const Board& board, std::uint32_t rank) {
  require(rank < board.workers(), "rank ", rank, " of ", board.workers(), " workers");
}

void make_scheme(Scheme* self, const std::string& name, Bytes words, LocksObject* locks, std::size_t row_word0,
                 std::uint32_t rank, std::uint32_t workers, std::size_t hot, std::size_t period, bool ordered_reads,
                 std::optional<Flat> probe, std::size_t probe_every) {
  const Kind kind = one_of<Kind>(
      "scheme", name, {"private", "racy", "lossless", "hot_cold", "aig", "round_robin", "sync"});
  const Board board = board_of(words, workers);
  check_rank(board, rank);
  const bool takes_locks = kind == Kind::lossless || kind == Kind::hot_cold || kind == Kind::aig;
  require(!takes_locks || locks != nullptr, "scheme '", name, "' needs locks");
  require(kind != Kind::hot_cold || (hot > 0 && period > 0),
          "hot_cold: wanted a head of at least 1 coordinate and a period of at least 1 example");
  require(!probe || probe->size() == 1, "probe: wanted one float");
  require(probe_every > 0, "probe_every: wanted at least 1 example");
  new (self) Scheme{kind, board, locks == nullptr ? nullptr : &locks->locks, row_word0, rank, hot, period,
                    ordered_reads, probe ? probe->data() : nullptr, probe_every};
}

// Object.run(scheme, order, gamma, batch=1): checks that need the problem, then the run without the GIL.
template <class Problem>
void bind_run(nb::class_<Problem>& bound) {
  const auto checked = [](Problem& problem, Scheme& scheme, IndexArray order, double gamma, std::size_t batch) {
    require(batch > 0, "batch: wanted at least 1 example");
    for (std::size_t i = 0; i < order.size(); ++i) {
      require(order.data()[i] >= 0 && static_cast<std::size_t>(order.data()[i]) < problem.n(), "order[", i, "] is ",
              order.data()[i], "; there are ", problem.n(), " examples");
    }
    const std::size_t n_words = scheme.locks == nullptr ? 0 : scheme.locks->size();
    require(scheme.locks == nullptr ||
                (scheme.row_word0 <= n_words && problem.words() <= n_words - scheme.row_word0),
            "the problem's ", problem.words(), " rows from lock word ", scheme.row_word0, " on do not fit ", n_words,
            " lock words");
    if constexpr (HasHead<Problem>) {
      require(scheme.kind != Kind::hot_cold || (scheme.hot / problem.width() <= problem.words() &&
                                                scheme.hot <= problem.words() * problem.width()),
              "hot: more coordinates than the problem has");
    } else {
      require(scheme.kind != Kind::hot_cold, "this problem has no hot head; write racy or lossless");
    }
    nb::gil_scoped_release nogil;
    return run(scheme, problem, Share{order.data(), order.size(), static_cast<float>(gamma), batch});
  };
  bound.def("run", checked, "scheme"_a, "order"_a.noconvert(), "gamma"_a, "batch"_a = 1,
            "One pass over `order`; returns the examples done, fewer only if stopped.");
}

// -- linear models -------------------------------------------------------------------------------------

Loss loss_of(const std::string& name) { return one_of<Loss>("loss", name, {"hinge", "logistic", "squares"}); }

const float* or_null(const Floats& values) { return values.size() == 0 ? nullptr : values.data(); }

// Every index is checked here, so that the loops may trust it.
void make_sparse(SparseLinear* self, Rows x, Pointers indptr, IndexArray indices, Floats values, Floats labels,
                 Floats shrink, const std::string& loss, bool active_rows) {
  const std::size_t n = labels.size(), coordinates = shrink.size() != 0 ? shrink.size() : x.size();
  require(x.size() > 0, "x: wanted at least one row");
  require(indptr.size() == n + 1, "indptr has ", indptr.size(), " entries, ", n, " labels want ", n + 1);
  require(indices.size() == values.size(), "indices and values differ in length");
  require(shrink.size() <= x.size(), "shrink has more coordinates than x");
  require(indptr.data()[0] == 0 && static_cast<std::size_t>(indptr.data()[n]) == values.size(),
          "indptr: wanted 0 first and the number of values last");
  for (std::size_t e = 0; e < n; ++e) {
    const std::int64_t begin = indptr.data()[e], end = indptr.data()[e + 1];
    require(begin <= end && static_cast<std::size_t>(end) <= values.size(), "indptr descends at row ", e);
    for (std::int64_t k = begin; k < end; ++k) {
      const std::int32_t u = indices.data()[k];
      require(u >= 0 && static_cast<std::size_t>(u) < coordinates, "row ", e, " names coordinate ", u, " of ",
              coordinates);
      require(k == begin || indices.data()[k - 1] < u, "row ", e, ": indices have to ascend, got ",
              k == begin ? 0 : indices.data()[k - 1], " before ", u);
    }
  }
  const SparseRows rows{indptr.data(), indices.data(), values.data(), labels.data(), n};
  new (self) SparseLinear(x.data(), x.size(), x.shape(1), rows, or_null(shrink), loss_of(loss), active_rows);
}

void make_dense(DenseLinear* self, Rows x, Matrix features, Floats labels, Floats shrink, const std::string& loss,
                std::size_t classes) {
  const std::size_t n = features.shape(0), d = features.shape(1);
  require(n > 0 && d > 0, "features: wanted at least one row and one column");
  require(classes > 0, "classes: wanted at least 1");
  require(x.size() > 0 && x.shape(0) % classes == 0 && x.size() / classes >= d, "x: wanted for each of ", classes,
          " classes the same number of rows, ", d, " floats or more");
  require(labels.size() == n, "labels and features differ in length");
  require(shrink.size() == 0 || shrink.size() == d, "shrink: wanted one number per feature, or none");
  for (std::size_t e = 0; classes > 1 && e < n; ++e) {
    const float y = labels.data()[e];
    require(y >= 0.0f && y < static_cast<float>(classes) && y == std::floor(y), "label ", e,
            " is no class from 0 to ", classes - 1);
  }
  const DenseRows rows{features.data(), labels.data(), n, d};
  new (self) DenseLinear(x.data(), x.size(), x.shape(1), rows, or_null(shrink), loss_of(loss), classes);
}

// -- problems on pairs ---------------------------------------------------------------------------------

Pairs checked_pairs(const PairTable& table, std::size_t firsts, std::size_t seconds) {
  const std::size_t limit[2] = {firsts, seconds};
  for (std::size_t k = 0; k < 3 * table.shape(0); ++k) {
    if (k % 3 == 2) continue;
    const std::int32_t row = table.data()[k];
    require(row >= 0 && static_cast<std::size_t>(row) < limit[k % 3], "example ", k / 3, " names row ", row, " of ",
            limit[k % 3]);
  }
  return Pairs(table.data(), table.shape(0));
}

// A first lock word so large that the last row's number would wrap belongs to no arena.
void check_word(const char* name, std::size_t word) {
  require(word <= std::size_t{1} << 62, name, " is ", word, ": an arena has fewer lock words");
}

void check_size(const char* name, std::size_t size, std::size_t wanted) {
  require(size == wanted, name, " has ", size, " entries; wanted ", wanted);
}

void make_completion(Completion* self, Rows left, Rows right, PairTable ratings, Floats shrink_users,
                     Floats shrink_items, double longest, std::size_t user_word0, std::size_t item_word0) {
  const std::size_t width = left.shape(1);
  require(width > 0 && width % kRowStep == 0 && right.shape(1) == width, "rows have ", width, " and ",
          right.shape(1), " floats; wanted one multiple of ", kRowStep);
  check_word("user_word0", user_word0);
  check_word("item_word0", item_word0);
  check_size("shrink_users", shrink_users.size(), left.shape(0));
  check_size("shrink_items", shrink_items.size(), right.shape(0));
  require(longest >= 0.0, "longest: wanted a length, or 0 for any");
  new (self) Completion{left.data(), right.data(), checked_pairs(ratings, left.shape(0), right.shape(0)),
                        shrink_users.data(), shrink_items.data(), left.shape(0), right.shape(0), width,
                        static_cast<float>(longest), user_word0, item_word0};
}

void make_cut(CutGraph* self, Rows x, PairTable edges, Flags fixed, std::size_t word0) {
  require(x.shape(1) > 0, "x: wanted rows of 1 float (two labels) or of one float per label");
  check_word("word0", word0);
  check_size("fixed", fixed.size(), x.shape(0));
  new (self) CutGraph{x.data(), checked_pairs(edges, x.shape(0), x.shape(0)), fixed.data(), x.shape(0), x.shape(1),
                      word0};
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
  namespace nb = nanobind;
  using namespace mlxhog::classic;
  using mlxhog::require;
  using Keep2 = nb::keep_alive<1, 2>;
  using Keep3 = nb::keep_alive<1, 3>;
  using Keep4 = nb::keep_alive<1, 4>;
  using Keep5 = nb::keep_alive<1, 5>;
  using Keep6 = nb::keep_alive<1, 6>;
  using Keep7 = nb::keep_alive<1, 7>;
  nb::class_<Board>(m, "ClassicBoard",
                    "Words that the workers of one classic run share: stop, turns, progress.\n\n"
                    "The layout is the table in metal/native/classic/board.h. `reset` is the host's, while no\n"
                    "worker runs; everything else may be called by any process at any time.")
      .def("__init__", [](Board* self, Bytes words, std::uint32_t workers) { new (self) Board(board_of(words, workers)); },
           "words"_a.noconvert(), "workers"_a, Keep2())
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
           "workers"_a, nb::kw_only(), "hot"_a = 8192, "period"_a = 256, "ordered_reads"_a = true,
           "probe"_a.noconvert().none() = nb::none(), "probe_every"_a = 1, Keep3(), Keep4(), nb::keep_alive<1, 11>());
  nb::class_<SparseLinear> sparse(m, "LinearProblem",
                                  "A linear model on sparse rows; x is (rows, width) float32, one lock word per row.");
  sparse.def("__init__", &make_sparse, "x"_a.noconvert(), "indptr"_a.noconvert(), "indices"_a.noconvert(),
             "values"_a.noconvert(), "labels"_a.noconvert(), "shrink"_a.noconvert(), nb::kw_only(), "loss"_a = "hinge",
             "active_rows"_a = false, Keep2(), Keep3(), Keep4(), Keep5(), Keep6(), Keep7());
  bind_run(sparse);
  nb::class_<DenseLinear> dense(m, "DenseLinearProblem",
                                "A linear model on dense rows, one-vs-rest for several classes; x is (rows, width)\n"
                                "float32, one lock word per row, the same number of rows for each class.");
  dense.def("__init__", &make_dense, "x"_a.noconvert(), "features"_a.noconvert(), "labels"_a.noconvert(),
            "shrink"_a.noconvert(), nb::kw_only(), "loss"_a = "hinge", "classes"_a = 1, Keep2(), Keep3(), Keep4(),
            Keep5());
  bind_run(dense);
  m.attr("ROW_STEP") = kRowStep;
  nb::class_<Completion> completion(m, "CompletionProblem",
                                    "Matrix completion; left and right are (rows, width) float32, ratings (n, 3) int32:\n"
                                    "user, item and the bits of the float32 rating. See metal/native/classic/completion.h.");
  completion
      .def("__init__", &make_completion, "left"_a.noconvert(), "right"_a.noconvert(), "ratings"_a.noconvert(),
           "shrink_users"_a.noconvert(), "shrink_items"_a.noconvert(), nb::kw_only(), "longest"_a = 0.0,
           "user_word0"_a = 0, "item_word0"_a = 0, Keep2(), Keep3(), Keep4(), Keep5(), Keep6())
      .def("squared_error", &squared_error, nb::call_guard<nb::gil_scoped_release>(),
           "Sum of (L_u . R_v - Z)^2 over all ratings, in float64.");
  bind_run(completion);
  m.def("project_onto_simplex", &project, "rows"_a.noconvert(),
        "Replace each row by the nearest point of {x >= 0, sum x = 1}, in place; rows are private.");
  nb::class_<CutGraph> cut(m, "CutProblem",
                           "Multiway cut; x is (vertices, labels) float32, or (vertices, 1) for two labels; edges (n, 3)\n"
                           "int32: head, tail and the bits of the float32 weight; fixed (vertices,) uint8. See\n"
                           "metal/native/classic/cuts.h.");
  cut.def("__init__", &make_cut, "x"_a.noconvert(), "edges"_a.noconvert(), "fixed"_a.noconvert(), nb::kw_only(),
          "word0"_a = 0, Keep2(), Keep3(), Keep4())
      .def("objective",
           [](const CutGraph& self, Rows x) {
             require(x.shape(0) == self.n_vertices && x.shape(1) == self.labels,
                     "x has another shape than the problem's");
             nb::gil_scoped_release nogil;
             return objective(self, x.data());
           },
           "x"_a.noconvert(), "Sum of w_uv |x_u - x_v|_1 over all edges, in float64.");
  bind_run(cut);
}
