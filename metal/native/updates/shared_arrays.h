// Checks of the bindings of shared-memory updates, before a kernel sees a pointer.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <sstream>
#include <vector>

#include "locks.h"
#include "walk.h"

namespace mlxhog {

namespace nb = nanobind;

using Flat = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;       // shared, or private state
using Values = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;            // a gradient, any shape
using IndexArray = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Raises ValueError with the joined parts unless `holds`.
template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw nb::value_error(text.str().c_str());
}

// Locks together with the arrays they live in, kept alive.
struct LocksObject {
  using Words = nb::ndarray<std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
  using Table = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

  LocksObject(Words words_array, Table table_array, std::uint32_t slot, std::uint32_t generation);

  Words words;
  Table table;
  Locks locks;
};

// The core's pointer: null stays null where `mode` takes no lock, else an error.
Locks* locks_for(LocksObject* object, Mode mode);
Mode mode_of(int mode);

// A gradient of `count` floats at `offset` of `flat` under dense stripes.
void check_dense(const Flat& flat, std::size_t offset, std::size_t count, const Locks* locks, Mode mode);

// A copy of indices below `end`, so that the checked values are used, even if another thread writes the array meanwhile.
std::vector<std::int32_t> checked_index(const char* what, const IndexArray& array, std::size_t end, bool ascending);

// Which rows of which parameter a row update touches, checked against the segment and the lock words.
struct RowPlace {
  std::size_t offset, width, rows;
  std::ptrdiff_t word0;
  bool all;                         // rows 0, 1, 2 .. of the parameter
  std::vector<std::int32_t> named;  // the others: a copy, so that the checked values are used

  const std::int32_t* index() const { return all ? nullptr : named.data(); }
};
RowPlace check_rows(const Flat& flat, std::size_t offset, std::size_t width, std::optional<std::size_t> word0,
                    const std::optional<IndexArray>& index, const Values& values, const Locks* locks, Mode mode,
                    bool distinct);

}  // namespace mlxhog
