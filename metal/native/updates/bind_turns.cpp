// Python bindings of reads, and of turns: recording and repeating the order of accesses.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "elements.h"
#include "shared_arrays.h"
#include "turns.h"

using namespace mlxhog;
using namespace nb::literals;

namespace {

// Turns together with the arrays they live in, kept alive.
struct TurnsObject : Turns {
  TurnsObject(Words next, Bytes book) : Turns(next.data(), checked(book).data(), book.size()), next(next), book(book) {}

  static const Bytes& checked(const Bytes& book) {
    require(reinterpret_cast<std::uintptr_t>(book.data()) % 8 == 0 && book.size() >= Turns::kHead, "book of ",
            book.size(), " bytes: wanted at least ", Turns::kHead, ", 8-byte aligned");
    return book;
  }

  Words next;
  Bytes book;
};

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
void visit(LocksObject* object, const std::vector<Region>& regions, std::size_t segment, std::uint64_t seed,
           const Run& run) {
  Locks* locks = locks_for(object, Mode::in_turn);
  for (const auto& [offset, count, width, word0] : regions)
    check_parameter(segment, offset, count, word0 ? width : 1, word0, locks, Mode::in_turn);
  nb::gil_scoped_release nogil;
  for (const auto& [offset, count, width, word0] : regions) {
    UpdateTarget target{locks, Mode::in_turn, offset, count};
    if (word0) target.width = width, target.word0 = static_cast<std::ptrdiff_t>(*word0), target.rows = count / width;
    target.walk(seed, 1, Visit<Run>{offset, run});
  }
}

// Reads shared floats: dst = src, or src + (a * last - b * prev), or src + a * (src - own_prev) and own_prev = src.
void read_floats(Flat dst, Values src, std::optional<Values> last, std::optional<Values> prev,
                 std::optional<Flat> own_prev, double a, double b, int threads, LocksObject* locks,
                 const std::vector<Region>& regions, std::uint64_t seed) {
  const std::size_t floats = src.size();
  require(last.has_value() == prev.has_value() && !(last && own_prev),
          "wanted last and prev, or own_prev, or neither");
  float* to = floats_of("dst", std::optional(dst), floats);
  const float *from = src.data(), *u = floats_of("last", last, floats), *before = floats_of("prev", prev, floats);
  float* own = floats_of("own_prev", own_prev, floats);
  const float first = static_cast<float>(a), second = static_cast<float>(b);
  const auto part = [&](std::size_t i, std::size_t n) {
    if (u != nullptr) mlxhog_extrapolate(to + i, from + i, u + i, before + i, first, second, n);
    else if (own != nullptr) mlxhog_predict(to + i, from + i, own + i, first, n);
    else mlxhog_copy(to + i, from + i, n);
  };
  if (locks != nullptr) return visit(locks, regions, floats, seed, part);
  nb::gil_scoped_release nogil;
  in_parts(floats, threads, part);
}

}  // namespace

void bind_turns(nb::module_& m) {
  nb::class_<TurnsObject>(m, "Turns", "The order of a worker's accesses; see metal/native/updates/turns.h.")
      .def(nb::init<Words, Bytes>(), "next"_a.noconvert(), "book"_a.noconvert())
      .def("record", &TurnsObject::record, "Begin a step whose accesses are noted.")
      .def("repeat", &TurnsObject::repeat, "turns"_a, "torn"_a = false,
           "Begin a step whose accesses come in recorded turns, and end with the last.")
      .def("stop", &TurnsObject::stop, "Let a thread that waits for a turn give up.")
      .def("settle", &TurnsObject::settle, "End the access that a partially applied step left.")
      .def_prop_ro("done", &TurnsObject::done, "Accesses of this step so far.");
  m.attr("TURNS_HEAD") = Turns::kHead;
  m.def("attach_turns",
        [](LocksObject& locks, TurnsObject& turns) {
          require(turns.next.size() == locks.size(), "turns of ", turns.next.size(), " lock words, the locks have ",
                  locks.size());
          locks.turns = &turns;
        },
        "locks"_a, nb::keep_alive<1, 2>(), "turns"_a, "Let accesses in write mode 3 by these locks be those of `turns`.");
  m.def("read", &read_floats, "dst"_a.noconvert(), "src"_a.noconvert(), nb::kw_only(), "last"_a.noconvert() = nb::none(),
        "prev"_a.noconvert() = nb::none(), "own_prev"_a.noconvert() = nb::none(), "a"_a = 0.0, "b"_a = 0.0,
        "threads"_a = 1, "locks"_a.none() = nb::none(), "regions"_a = std::vector<Region>(), "seed"_a = 0,
        "Copy shared floats that others may be writing, in one pass; no element is torn. dst = src, or\n"
        "src + (a * last - b * prev), or src + a * (src - own_prev) and own_prev = src. With locks, regions in turns.");
  m.def("zero_in_turn",
        [](LocksObject& locks, std::vector<Region> regions, std::vector<Flat> arrays, std::uint64_t seed) {
          if (arrays.empty()) return;
          for (const Flat& array : arrays) floats_of("an array", std::optional(array), arrays[0].size());
          visit(&locks, regions, arrays[0].size(), seed, [&](std::size_t i, std::size_t n) {
            for (const Flat& array : arrays) std::fill_n(array.data() + i, n, 0.0f);
          });
        },
        "locks"_a, "regions"_a, "arrays"_a.noconvert(), "seed"_a = 0, "Set shared arrays to zero, in turns.");
}
