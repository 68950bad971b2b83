// Python names of counted n-grams; arguments are checked here, the GIL is released. A table is checked as a whole when
// it is opened, so that no later call can leave it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "counts.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace mlxhog::counts;

namespace {

template <class T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<nb::numpy, std::uint32_t, nb::ndim<2>>;

constexpr std::size_t kMostIds = std::size_t{1} << 24;

[[noreturn]] void refuse(const std::string& why) { throw nb::value_error(why.c_str()); }

std::string text(std::size_t n) { return std::to_string(n); }

// The elements of a vector as rows of 32-bit words; the array owns them.
template <class Element>
Rows rows_of(std::vector<Element>&& elements) {
  auto* kept = new std::vector<Element>(std::move(elements));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<Element>*>(p); });
  return Rows(kept->data(), {kept->size(), sizeof(Element) / sizeof(std::uint32_t)}, owner);
}

nb::tuple count_ngrams(const In<std::int32_t, 1>& ids, const In<std::int64_t, 1>& begins, std::size_t vocab,
                       int orders) {
  const std::size_t n = ids.size(), runs = begins.size();
  if (vocab > kMostIds) refuse("vocab is " + text(vocab) + ", expected at most " + text(kMostIds) + " ids");
  if (orders < 1 || orders > 63) refuse("orders is " + std::to_string(orders) + ", expected 1 to 63");
  if (runs < 2 || begins(0) != 0 || static_cast<std::size_t>(begins(runs - 1)) != n || n >> 32)
    refuse("begins must start with 0 and end at the number of ids, below 2^32");
  for (std::size_t r = 1; r < runs; ++r)
    if (begins(r) < begins(r - 1)) refuse("begins must never fall");
  for (std::size_t i = 0; i < n; ++i)
    if (ids(i) < 0 || static_cast<std::size_t>(ids(i)) >= vocab) refuse("an id is outside [0, vocab)");
  Counts counted;
  {
    nb::gil_scoped_release nogil;
    counted = count(ids.data(), begins.data(), runs - 1, vocab, orders);
  }
  if (counted.contexts.size() < 2) refuse("no run is longer than a context of " + text(counted.orders) + " ids");
  return nb::make_tuple(rows_of(std::move(counted.contexts)), rows_of(std::move(counted.successors)), counted.orders);
}

// A table with the arrays that it lies in.
struct NGrams {
  NGrams(In<std::uint32_t, 2> context_array, In<std::uint32_t, 2> successor_array, In<float, 2> weight_array,
         std::size_t vocab_size)
      : contexts(context_array), successors(successor_array), weights(weight_array), vocab(vocab_size) {
    if (contexts.shape(0) < 2 || contexts.shape(1) != 4 || successors.shape(0) < 1 || successors.shape(1) != 2)
      refuse("contexts must have 4 columns and a root, successors 2 columns and a row");
    if (weights.shape(0) < 2 || weights.shape(0) > 64 || weights.shape(1) != kBuckets)
      refuse("weights must have a row per order, 2 to 64, and " + text(kBuckets) + " columns");
    table = {reinterpret_cast<const Context*>(contexts.data()), reinterpret_cast<const Successor*>(successors.data()),
             static_cast<int>(weights.shape(0)) - 1};
    const std::size_t n = contexts.shape(0) - 1, m = successors.shape(0);
    bool sound = table.contexts[n].successors == m && table.contexts[n].children == n && vocab <= kMostIds;
    for (std::size_t c = 0; c < n && sound; ++c) {
      const Context& now = table.contexts[c];
      const Context& next = table.contexts[c + 1];
      sound = now.total > 0 && now.successors < next.successors && now.children <= next.children && now.children > c;
    }
    for (std::size_t s = 0; s < m && sound; ++s) sound = table.successors[s].id < vocab;
    if (!sound) refuse("these contexts and successors are not a table of counts");
  }

  bool evidence(const In<std::int32_t, 1>& ids, const In<std::int64_t, 1>& positions, bool without_itself,
                Out<float, 2> ml, Out<std::int16_t, 2> bucket) const {
    const std::size_t m = positions.size(), orders = weights.shape(0);
    if (ml.shape(0) != orders || ml.shape(1) != m || bucket.shape(0) != orders || bucket.shape(1) != m)
      refuse("ml and bucket must have a row per order and a column per position");
    for (std::size_t j = 0; j < m; ++j)
      if (positions(j) < 0 || static_cast<std::size_t>(positions(j)) >= ids.size()) refuse("a position has no id");
    nb::gil_scoped_release nogil;
    return mlxhog::counts::evidence(table, ids.data(), positions.data(), m, without_itself, ml.data(), bucket.data());
  }

  In<std::uint32_t, 2> contexts, successors;
  In<float, 2> weights;
  std::size_t vocab;
  Table table;
};

}  // namespace

void bind_counts(nb::module_& m) {
  m.def("count_ngrams", &count_ngrams, "ids"_a.noconvert(), "begins"_a.noconvert(), "vocab"_a, "orders"_a,
        "Contexts (n + 1, 4), successors (m, 2) and the longest context of the runs ids[begins[r]:begins[r + 1]].");
  nb::class_<NGrams>(m, "NGrams", "A table of `count_ngrams` with weights for its orders.")
      .def(nb::init<In<std::uint32_t, 2>, In<std::uint32_t, 2>, In<float, 2>, std::size_t>(),
           "contexts"_a.noconvert(), "successors"_a.noconvert(), "weights"_a.noconvert(), "vocab"_a)
      .def("evidence", &NGrams::evidence, "ids"_a.noconvert(), "positions"_a.noconvert(), "without_itself"_a,
           "ml"_a.noconvert(), "bucket"_a.noconvert(),
           "Share of the id at each position among the successors of each order's context, and that context's bucket; "
           "False if an occurrence that should be left out was not counted.");
}
