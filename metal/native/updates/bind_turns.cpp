// Python bindings of turns: recording and repeating the order of accesses, and reads that take part in it.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "elements.h"
#include "shared_arrays.h"
#include "turns.h"

using namespace mlxhog;
using namespace nb::literals;

namespace {

using Words = nb::ndarray<std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<nb::numpy, std::uint32_t, nb::ndim<1>>;

// Turns together with the arrays they live in, kept alive.
struct TurnsObject {
  TurnsObject(Words next_array, Bytes book_array)
      : next(next_array), book(checked(book_array)), turns(next.data(), book.data(), book.size()) {}

  static Bytes checked(Bytes book) {
    require(reinterpret_cast<std::uintptr_t>(book.data()) % 8 == 0 && book.size() >= Turns::kHead, "book of ",
            book.size(), " bytes: wanted at least ", Turns::kHead, ", 8-byte aligned");
    return book;
  }

  Words next;
  Bytes book;
  Turns turns;
};

Numbers numbers(const std::uint32_t* from, std::size_t n) {
  auto* copy = new std::uint32_t[n];
  nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<std::uint32_t*>(p); });
  std::copy_n(from, n, copy);
  return Numbers(copy, {n}, owner);
}

// A run of floats of the parameter segment: by stripes, or rows of a width with a lock word each from word0 on.
using Region = std::tuple<std::size_t, std::size_t, std::size_t, std::optional<std::size_t>>;

// Goes over shared floats in their turns: `run(first float, floats)` under each lock.
template <class Run>
struct Visit {
  std::size_t offset;
  const Run& run;

  void apply(std::size_t p, std::size_t, std::size_t n) const { run(offset + p, n); }
  void apply_cas(std::size_t p, std::size_t, std::size_t n) const { run(offset + p, n); }
};

template <class Run>
void visit(LocksObject& object, const std::vector<Region>& regions, std::size_t floats, std::uint64_t seed,
           const Run& run) {
  Locks* locks = locks_for(&object, Mode::in_turn);
  for (const auto& [offset, count, width, word0] : regions) {
    const std::size_t words = word0 ? (width == 0 ? 0 : *word0 + count / width) : stripes(offset + count);
    require(offset <= floats && count <= floats - offset && words <= locks->size() &&
                !(word0 && (width == 0 || count % width)),
            count, " floats at ", offset, " do not fit the segment of ", floats, " and its ", locks->size(), " lock words");
  }
  nb::gil_scoped_release nogil;
  for (const auto& [offset, count, width, word0] : regions) {
    const Visit<Run> step{offset, run};
    if (word0) {
      walk_rows(locks, Mode::in_turn, offset, width, static_cast<std::ptrdiff_t>(*word0), nullptr, count / width, seed,
                step);
    } else {
      walk_stripes(locks, Mode::in_turn, offset, 0, 0, count, seed, step);
    }
  }
}

void check_size(const char* name, std::size_t size, std::size_t wanted) {
  require(size == wanted, name, " has ", size, " floats, wanted ", wanted);
}

}  // namespace

void bind_turns(nb::module_& m) {
  nb::class_<TurnsObject>(m, "Turns", "The order of a worker's accesses; see metal/native/updates/turns.h.")
      .def(nb::init<Words, Bytes>(), "next"_a.noconvert(), "book"_a.noconvert())
      .def("record", [](TurnsObject& self) { self.turns.record(); }, "Begin a step whose accesses are noted.")
      .def("repeat",
           [](TurnsObject& self, std::vector<std::uint32_t> turns, bool torn) {
             self.turns.repeat(std::move(turns), torn);
           },
           "turns"_a, "torn"_a = false, "Begin a step whose accesses come in recorded turns, and end with the last.")
      .def("stop", [](TurnsObject& self) { self.turns.stop(); }, "Let a thread that waits for a turn give up.")
      .def("settle", [](TurnsObject& self) { self.turns.settle(); }, "End the access that a torn step left.")
      .def_prop_ro("done", [](const TurnsObject& self) { return self.turns.done(); }, "Accesses of this step so far.");
  m.attr("TURNS_HEAD") = Turns::kHead;
  m.def("follow_turns",
        [](LocksObject& locks, TurnsObject& turns) {
          require(turns.next.size() == locks.locks.size(), "turns of ", turns.next.size(),
                  " lock words, the locks have ", locks.locks.size());
          locks.locks.turns = &turns.turns;
        },
        "locks"_a, nb::keep_alive<1, 2>(), "turns"_a, "Let accesses in write mode 3 by these locks be those of `turns`.");
  m.def("read_in_turn",
        [](LocksObject& locks, std::vector<Region> regions, Flat dst, Values src, std::optional<Values> last,
           std::optional<Values> shared_prev, std::optional<Flat> own_prev, double a, double b, std::uint64_t seed) {
          check_size("dst", dst.size(), src.size());
          if (last) check_size("last", last->size(), src.size());
          if (shared_prev) check_size("prev", shared_prev->size(), src.size());
          if (own_prev) check_size("own_prev", own_prev->size(), src.size());
          require(last.has_value() == shared_prev.has_value() && !(last && own_prev),
                  "wanted last and prev, or own_prev, or neither");
          float* to = dst.data();
          const float* from = src.data();
          const float first = static_cast<float>(a), second = static_cast<float>(b);
          if (last) {
            const float *u = last->data(), *before = shared_prev->data();
            visit(locks, regions, src.size(), seed, [&](std::size_t i, std::size_t n) {
              mlxhog_look_ahead(to + i, from + i, u + i, before + i, first, second, n);
            });
          } else if (own_prev) {
            float* before = own_prev->data();
            visit(locks, regions, src.size(), seed, [&](std::size_t i, std::size_t n) {
              mlxhog_predict(to + i, from + i, before + i, first, n);
            });
          } else {
            visit(locks, regions, src.size(), seed,
                  [&](std::size_t i, std::size_t n) { mlxhog_copy(to + i, from + i, n); });
          }
        },
        "locks"_a, "regions"_a, "dst"_a.noconvert(), "src"_a.noconvert(), "last"_a.noconvert().none() = nb::none(),
        "prev"_a.noconvert().none() = nb::none(), "own_prev"_a.noconvert().none() = nb::none(), "a"_a = 0.0,
        "b"_a = 0.0, "seed"_a = 0,
        "dst = src, or src + (a * last - b * prev), or src + a * (src - own_prev) and own_prev = src, in turns.");
  m.def("zero_in_turn",
        [](LocksObject& locks, std::vector<Region> regions, std::vector<Flat> arrays, std::uint64_t seed) {
          if (arrays.empty()) return;
          for (const Flat& array : arrays) check_size("an array", array.size(), arrays[0].size());
          visit(locks, regions, arrays[0].size(), seed, [&](std::size_t i, std::size_t n) {
            for (const Flat& array : arrays) std::fill_n(array.data() + i, n, 0.0f);
          });
        },
        "locks"_a, "regions"_a, "arrays"_a.noconvert(), "seed"_a = 0, "Set shared arrays to zero, in turns.");
  m.def("stripe_sums",
        [](Values values) {
          const std::size_t n = stripes(values.size());
          std::vector<std::uint32_t> sums(n);
          {
            nb::gil_scoped_release nogil;
            stripe_sums(values.data(), values.size(), sums.data());
          }
          return numbers(sums.data(), n);
        },
        "values"_a.noconvert(), "A sum of the bits of each 1024 floats, (stripes,) uint32.");
}
