// Python names of the counts that the theory needs; arguments are checked here, the GIL is released.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <string>

#include "conflicts.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Pointers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bitmaps = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check_counts(const Counts& met, std::size_t wanted) {
  if (met.size() != wanted) {
    throw nb::value_error(
        ("met has " + std::to_string(met.size()) + " elements, wanted " + std::to_string(wanted)).c_str());
  }
}

void edge_degrees(const Pointers& indptr, const Indices& indices, std::size_t n, Counts met) {
  if (indptr.size() == 0 || indptr(0) != 0) throw nb::value_error("indptr must begin with 0");
  const std::size_t edges = indptr.size() - 1;
  for (std::size_t e = 0; e < edges; ++e) {
    if (indptr(e + 1) < indptr(e)) throw nb::value_error("indptr must never fall");
  }
  if (static_cast<std::size_t>(indptr(edges)) != indices.size()) {
    throw nb::value_error("indptr must end at the number of indices");
  }
  for (std::size_t k = 0; k < indices.size(); ++k) {
    if (indices(k) < 0 || static_cast<std::size_t>(indices(k)) >= n) throw nb::value_error("an index is outside [0, n)");
  }
  check_counts(met, edges);
  // Vertices after the last named one have no conflicts: a huge n costs no memory.
  const auto last = std::max_element(indices.data(), indices.data() + indices.size());
  n = indices.size() == 0 ? 0 : static_cast<std::size_t>(*last) + 1;
  std::fill(met.data(), met.data() + edges, 0);
  for (std::size_t first = 0; first < edges; first += mlxhog::kBlock) {
    {
      nb::gil_scoped_release nogil;
      mlxhog::meet_block(indptr.data(), indices.data(), edges, n, first, met.data());
    }
    if (PyErr_CheckSignals() != 0) throw nb::python_error();  // a large data set takes minutes
  }
}

void bitmap_meetings(const Bitmaps& rows, const Bitmaps& others, Counts met) {
  if (rows.shape(1) != others.shape(1)) throw nb::value_error("rows and others must have rows of one width");
  check_counts(met, rows.shape(0));
  nb::gil_scoped_release nogil;
  mlxhog::bitmap_meetings(rows.data(), rows.shape(0), others.data(), others.shape(0), rows.shape(1), met.data());
}

}  // namespace

void bind_theory(nb::module_& m) {
  m.def("edge_degrees", &edge_degrees, "indptr"_a.noconvert(), "indices"_a.noconvert(), "n"_a, "met"_a.noconvert(),
        "Edges that each edge of a hypergraph meets, itself included.");
  m.def("bitmap_meetings", &bitmap_meetings, "rows"_a.noconvert(), "others"_a.noconvert(), "met"_a.noconvert(),
        "How many of the bitmaps `others` share a bit with each of `rows`.");
}
