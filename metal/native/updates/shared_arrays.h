// Checks of the bindings of shared-memory updates, before a kernel sees a pointer.
#pragma once

#include <nanobind/stl/tuple.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../ops/shapes.h"
#include "locks.h"
#include "walk.h"

namespace mlxhog {

using Flat = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;       // shared, or private state
using Values = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;            // a gradient, any shape
using IndexArray = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The data of an array of so many floats; null where it is None.
template <class Array>
auto floats_of(const char* name, const std::optional<Array>& array, std::size_t wanted) {
  require(!array || array->size() == wanted, name, " has ", array ? array->size() : 0, " floats; wanted ", wanted);
  return array ? array->data() : nullptr;
}

using Words = nb::ndarray<std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Locks together with the arrays they live in, kept alive.
struct LocksObject : Locks {
  LocksObject(Words words, Bytes table, std::uint32_t slot, std::uint32_t generation);

  Words words;
  Bytes table;
};

// The core's pointer: null stays null where `mode` takes no lock, else an error.
Locks* locks_for(LocksObject* object, Mode mode);
Mode mode_of(int mode);

// A copy of indices below `end`, so that the checked values are used, even if another thread writes the array
// meanwhile.
std::vector<std::int32_t> checked_index(const char* what, const IndexArray& array, std::size_t end, bool ascending);

// Memory of the segment and its exclusion unit: a whole parameter, by stripes or by rows, or some of its rows.
struct UpdateTarget {
  Locks* locks;  // may be null where `mode` takes none
  Mode mode;
  std::size_t offset, floats;      // of the parameter
  std::size_t width = 0;           // of a row; 0 goes over all by stripes
  std::ptrdiff_t word0 = kStripes;
  std::size_t rows = 0;
  std::optional<std::vector<std::int32_t>> index = {};  // none is all rows

  template <class Step>
  void walk(std::uint64_t seed, int threads, const Step& step) const {
    if (width == 0) return walk_dense(locks, mode, offset, floats, seed, threads, step);
    walk_rows(locks, mode, offset, width, word0, index ? index->data() : nullptr, rows, seed, step);
  }
};

// Rows of a parameter: which (none is all), their width, the first lock word (none is dense stripes), floats in all.
using RowsOf = std::tuple<std::optional<IndexArray>, std::size_t, std::optional<std::size_t>, std::size_t>;

// A parameter of whole rows that lies inside the segment and, where `mode` takes locks, behind lock words.
void check_parameter(std::size_t segment, std::size_t offset, std::size_t floats, std::size_t width,
                     std::optional<std::size_t> word0, const Locks* locks, Mode mode);
// Where `values` floats go; `distinct` wants every row once, in ascending order.
UpdateTarget update_target(Locks* locks, Mode mode, const Flat& flat, std::size_t offset, std::size_t values,
               const std::optional<RowsOf>& rows, bool distinct);

}  // namespace mlxhog
