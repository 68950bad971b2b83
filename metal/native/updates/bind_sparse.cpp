// Python bindings of sparse updates: the selection from a pending step, and its adds.
#include <utility>
#include <vector>

#include "add_at.h"
#include "selection.h"
#include "shared_arrays.h"

using namespace mlxhog;
using namespace nb::literals;

namespace {

std::string text(std::size_t n) { return std::to_string(n); }

[[noreturn]] void refuse(const std::string& why) { throw nb::value_error(why.c_str()); }

// A copy of the index, so that the checked values are used, even if another thread writes the array meanwhile.
std::vector<std::int32_t> ascending(const char* what, const IndexArray& array, std::size_t end) {
  std::vector<std::int32_t> index(array.data(), array.data() + array.size());
  for (std::size_t k = 0; k < index.size(); ++k) {
    const bool inside = index[k] >= 0 && static_cast<std::size_t>(index[k]) < end;
    if (!inside || (k > 0 && index[k] <= index[k - 1])) {
      refuse(std::string(what) + " " + std::to_string(index[k]) + " at place " + text(k) +
             ": wanted ascending ones, each once, below " + text(end));
    }
  }
  return index;
}

// Checked rows of a pending step.
struct Rows {
  std::vector<std::int32_t> index;
  Pending pending;
};

// `rows` rows of `width` floats at `offset` of `pending`, or those that `index` names.
Rows pending_of(const Flat& pending, std::size_t offset, std::size_t width, std::size_t rows,
                const std::optional<IndexArray>& index) {
  if (width == 0 || offset > pending.size() || rows > (pending.size() - offset) / width) {
    refuse(text(rows) + " rows of " + text(width) + " floats at " + text(offset) +
           " do not fit the segment of " + text(pending.size()));
  }
  if (rows * width > std::size_t{0x7fffffff}) refuse("a parameter of 2^31 elements or more: cannot be sparsified");
  Rows made{index ? ascending("row", *index, rows) : std::vector<std::int32_t>(),
            {pending.data() + offset, width, rows, nullptr}};
  if (index) {
    made.pending.rows = made.index.size();
    made.pending.index = made.index.data();  // stays where it is when the vector moves
  }
  return made;
}

// At most `room` elements leave, also if others write between the count and this call.
nb::tuple taken(const Pending& pending, bool keep, Bound bound, std::size_t room) {
  auto* index = new std::int32_t[room];
  nb::capsule own_index(index, [](void* p) noexcept { delete[] static_cast<std::int32_t*>(p); });
  auto* values = new float[room];
  nb::capsule own_values(values, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  std::size_t n;
  {
    nb::gil_scoped_release nogil;
    n = take(pending, bound, keep, room, index, values);
  }
  return nb::make_tuple(nb::ndarray<nb::numpy, std::int32_t, nb::ndim<1>>(index, {n}, own_index),
                        nb::ndarray<nb::numpy, float, nb::ndim<1>>(values, {n}, own_values));
}

template <class MakeBound>
nb::tuple take_by(const Pending& pending, bool keep, MakeBound make) {
  Bound bound;
  std::size_t n;
  {
    nb::gil_scoped_release nogil;
    bound = make();
    n = count(pending, bound);
  }
  return taken(pending, keep, bound, n);
}

}  // namespace

void bind_sparse(nb::module_& m) {
  m.def("take_largest",
        [](Flat pending, std::size_t offset, std::size_t width, std::size_t rows, std::optional<IndexArray> index,
           std::size_t k, bool keep) {
          const Rows checked = pending_of(pending, offset, width, rows, index);
          return take_by(checked.pending, keep, [&] { return largest(checked.pending, k); });
        },
        "pending"_a.noconvert(), "offset"_a, "width"_a, "rows"_a, "index"_a.noconvert().none(), "k"_a, "keep"_a,
        "Remove the k elements of largest magnitude (the first among equals, never a zero); returns their places "
        "in the parameter, ascending, and their values. The others stay where keep, else become 0.");
  m.def("take_reaching",
        [](Flat pending, std::size_t offset, std::size_t width, std::size_t rows, std::optional<IndexArray> index,
           float least, bool keep) {
          const Rows checked = pending_of(pending, offset, width, rows, index);
          return take_by(checked.pending, keep, [&] { return reaching(least); });
        },
        "pending"_a.noconvert(), "offset"_a, "width"_a, "rows"_a, "index"_a.noconvert().none(), "least"_a, "keep"_a,
        "The same for every element that is not zero and of magnitude >= least.");
  m.def("add_at",
        [](LocksObject* object, int mode_number, Flat flat, std::size_t offset, std::size_t size, std::size_t width,
           std::optional<std::size_t> word0, IndexArray index, Values values, std::uint64_t seed) {
          const Mode mode = mode_of(mode_number);
          if (mode == Mode::in_turn) refuse("scattered elements are not added in turn: such steps read without a lock");
          Locks* locks = locks_for(object, mode);
          if (index.size() != values.size()) refuse(text(index.size()) + " places for " + text(values.size()) + " values");
          if (width == 0 || size % width != 0) refuse("size " + text(size) + ": wanted whole rows of " + text(width));
          check_dense(flat, offset, size, word0 ? nullptr : locks, word0 ? Mode::racy : mode);
          if (word0 && mode == Mode::lossless &&
              (*word0 > locks->size() || size / width > locks->size() - *word0)) {
            refuse(text(size / width) + " lock words from " + text(*word0) + " on: there are " +
                   text(locks->size()));
          }
          const std::vector<std::int32_t> places = ascending("element", index, size);
          nb::gil_scoped_release nogil;
          walk_at(locks, mode, Scattered{flat.data(), offset, places.data(), values.data(), places.size()}, width,
                  word0 ? static_cast<std::ptrdiff_t>(*word0) : kStripes, seed);
        },
        "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "size"_a, "width"_a, "word0"_a.none(),
        "index"_a.noconvert(), "values"_a.noconvert(), "seed"_a = 0,
        "flat[offset + index] += values, index ascending; word0 None means dense stripes.");
}
