// Python bindings of matrix completion.
#include <utility>

#include "completion.h"
#include "pair_arrays.h"
#include "row.h"

using namespace nanobind::literals;

namespace mlxhog::classic {
namespace {

// The problem with the arrays it reads, kept alive.
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

}  // namespace
}  // namespace mlxhog::classic

void bind_completion(nanobind::module_& m) {
  namespace nb = nanobind;
  using namespace mlxhog::classic;
  m.attr("ROW_STEP") = kRowStep;
  nb::class_<CompletionObject>(m, "CompletionProblem",
                               "Matrix completion; left and right are (rows, width) float32, ratings (n, 3) int32:\n"
                               "user, item and the bits of the float32 rating. See metal/native/classic/completion.h.")
      .def(nb::init<Rows, Rows, PairTable, Floats, Floats, double, std::size_t, std::size_t>(), "left"_a.noconvert(),
           "right"_a.noconvert(), "ratings"_a.noconvert(), "shrink_users"_a.noconvert(),
           "shrink_items"_a.noconvert(), nb::kw_only(), "longest"_a = 0.0, "user_word0"_a = 0, "item_word0"_a = 0)
      .def("run",
           [](CompletionObject& self, SchemeObject& scheme, mlxhog::Index order, double gamma, std::size_t batch) {
             return run_checked(scheme, self.core, order, gamma, batch);
           },
           "scheme"_a, "order"_a.noconvert(), "gamma"_a, "batch"_a = 1,
           "One pass over `order`; returns the examples done, fewer only if stopped.")
      .def("squared_error",
           [](const CompletionObject& self) {
             nb::gil_scoped_release nogil;
             return squared_error(self.core);
           },
           "Sum of (L_u . R_v - Z)^2 over all ratings, in float64.");
}
