// Python bindings of locks, adds and snapshots; bind_steps.cpp has the fused optimizer steps,
// bind_sparse.cpp the adds at scattered elements, bind_muon.cpp Muon's orthogonalisation, bind_turns.cpp accesses whose
// order is noted.
#include <nanobind/stl/vector.h>

#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#include "cas_add.h"
#include "elements.h"
#include "private_arrays.h"
#include "process_life.h"
#include "shared_arrays.h"
#include "striped.h"

using namespace mlxhog;
using namespace nb::literals;

void bind_steps(nb::module_&);
void bind_sparse(nb::module_&);
void bind_muon(nb::module_&);
void bind_turns(nb::module_&);

namespace {

using Words = nb::ndarray<std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void add_dense(LocksObject* object, int mode_number, Flat flat, std::size_t offset, Values delta,
               std::uint64_t seed) {
  const Mode mode = mode_of(mode_number);
  Locks* locks = locks_for(object, mode);
  check_dense(flat, offset, delta.size(), locks, mode);
  nb::gil_scoped_release nogil;
  walk_stripes(locks, mode, offset, 0, 0, delta.size(), seed,
               AddStep{flat.data() + offset, delta.data(), widest_cas()});
}

void add_rows(LocksObject* object, int mode_number, Flat flat, std::size_t offset, std::size_t width,
              std::optional<std::size_t> word0, std::optional<IndexArray> index, Values values, std::uint64_t seed) {
  const Mode mode = mode_of(mode_number);
  Locks* locks = locks_for(object, mode);
  const RowPlace at = check_rows(flat, offset, width, word0, index, values, locks, mode, false);
  nb::gil_scoped_release nogil;
  walk_rows(locks, mode, at.offset, at.width, at.word0, at.index(), at.rows, seed,
            AddStep{flat.data() + offset, values.data(), widest_cas()});
}

void add_cas(Flat flat, std::size_t offset, Values delta, int width) {
  check_dense(flat, offset, delta.size(), nullptr, Mode::cas);
  if (width != 1 && width != 2 && width != 4) throw nb::value_error("width: wanted 1, 2 or 4 floats");
  if (width > 2 && width > widest_cas()) throw nb::value_error("this CPU has no compare-and-swap of 4 floats");
  nb::gil_scoped_release nogil;
  cas_add(flat.data() + offset, delta.data(), delta.size(), width);
}

void check_same_size(const char* name, std::size_t size, std::size_t wanted) {
  if (size != wanted) {
    throw nb::value_error((std::string(name) + " has " + std::to_string(size) + " floats, src " +
                           std::to_string(wanted)).c_str());
  }
}

void snapshot(Flat dst, Values src, int threads) {
  check_same_size("dst", dst.size(), src.size());
  nb::gil_scoped_release nogil;
  in_parts(dst.size(), threads, [&](std::size_t i, std::size_t n) { mlxhog_copy(dst.data() + i, src.data() + i, n); });
}

void snapshot_predict(Flat dst, Values src, Flat prev, double coef, int threads) {
  check_same_size("dst", dst.size(), src.size());
  check_same_size("prev", prev.size(), src.size());
  nb::gil_scoped_release nogil;
  in_parts(dst.size(), threads, [&](std::size_t i, std::size_t n) {
    mlxhog_predict(dst.data() + i, src.data() + i, prev.data() + i, static_cast<float>(coef), n);
  });
}

void snapshot_ahead(Flat dst, Values src, Values last, Values prev, double horizon, double trend, int threads) {
  check_same_size("dst", dst.size(), src.size());
  check_same_size("last", last.size(), src.size());
  check_same_size("prev", prev.size(), src.size());
  const double a = horizon * (1.0 + trend), b = horizon * trend;
  nb::gil_scoped_release nogil;
  in_parts(dst.size(), threads, [&](std::size_t i, std::size_t n) {
    mlxhog_look_ahead(dst.data() + i, src.data() + i, last.data() + i, prev.data() + i, static_cast<float>(a),
                      static_cast<float>(b), n);
  });
}

double sumsq(Values g) {
  nb::gil_scoped_release nogil;
  return sum_of_squares(g.data(), g.size());
}

double sumsq_of_all(std::vector<Values> gs, int threads) {
  std::vector<std::pair<const float*, std::size_t>> parts;
  std::size_t floats = 0;
  for (const Values& g : gs) {
    floats += g.size();
    for (std::size_t i = 0; i < g.size(); i += kSummed) {
      parts.emplace_back(g.data() + i, std::min(kSummed, g.size() - i));
    }
  }
  std::vector<double> sums(parts.size());
  nb::gil_scoped_release nogil;
  const auto sum = [&](Index k) { sums[k] = sum_of_squares(parts[k].first, parts[k].second); };
  parallel_for(static_cast<Index>(parts.size()), floats < 2 * kSummed ? 1 : threads, std::ref(sum));
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void sum_rows_into(IndexArray target, Values values, Flat out, std::size_t width) {
  if (width == 0 || out.size() % width != 0 || values.size() != target.size() * width) {
    throw nb::value_error("sum_rows: values must hold len(target) rows and out whole rows of that width");
  }
  // A copy, so that the checked values are used.
  const std::vector<std::int32_t> rows(target.data(), target.data() + target.size());
  for (const std::int32_t row : rows) {
    if (row < 0 || static_cast<std::size_t>(row) >= out.size() / width) {
      throw nb::value_error("sum_rows: target names a row outside out");
    }
  }
  nb::gil_scoped_release nogil;
  sum_rows(rows.data(), values.data(), out.data(), rows.size(), width);
}

}  // namespace

void bind_updates(nb::module_& m) {
  nb::class_<LocksObject>(m, "Locks", "Crash-safe locks of one worker; see metal/native/updates/locks.h.")
      .def(nb::init<LocksObject::Words, LocksObject::Table, std::uint32_t, std::uint32_t>(),
           "words"_a.noconvert(), "workers"_a.noconvert(), "slot"_a, "generation"_a)
      .def_prop_ro("takeovers", [](const LocksObject& self) { return self.locks.takeovers(); },
                   "Locks taken over from dead workers so far.")
      .def_prop_ro("word", [](const LocksObject& self) { return self.locks.word(); },
                   "The value of a lock word that this worker holds.")
      .def("__len__", [](const LocksObject& self) { return self.locks.size(); })
      .def("acquire",
           [](LocksObject& self, std::size_t i) {
             if (i >= self.locks.size()) throw nb::index_error("no such lock word");
             nb::gil_scoped_release nogil;
             self.locks.lock(i);
           },
           "i"_a, "Take lock i, waiting for a live owner and taking over from a dead one.")
      .def("release",
           [](LocksObject& self, std::size_t i) {
             if (i >= self.locks.size()) throw nb::index_error("no such lock word");
             if (!self.locks.owns(i)) throw nb::value_error("release of a lock that this worker does not hold");
             self.locks.unlock(i);
           },
           "i"_a, "Release lock i.");
  m.def("sweep_locks",
        [](LocksObject::Words words, std::uint32_t slot, std::optional<std::uint32_t> generation) {
          const std::int64_t only = generation ? static_cast<std::int64_t>(*generation & 0xffffu) : -1;
          return sweep_locks(words.data(), words.size(), slot, only);
        },
        "words"_a.noconvert(), "slot"_a, "generation"_a = nb::none(),
        "Free every word that names a reaped slot (of one generation, if given); returns how many.");
  m.def("process_start_time", &process_start_time, "pid"_a,
        "When a process started, in the unit of the worker table; 0 if there is none.");
  m.def("process_is_gone", &process_is_gone, "pid"_a, "start_time"_a,
        "Whether the process of this pid and start time has ended, be it a zombie yet.");
  m.attr("STRIPE") = kStripe;
  m.def("widest_cas", &widest_cas, "Floats in the widest compare-and-swap that `cas` mode uses here.");
  m.def("add_dense", &add_dense, "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a,
        "delta"_a.noconvert(), "seed"_a = 0, "flat[offset:offset+k] += delta.");
  m.def("add_rows", &add_rows, "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "width"_a,
        "word0"_a.none(), "index"_a.noconvert().none(), "values"_a.noconvert(), "seed"_a = 0,
        "Add values to rows; duplicates are legal; index None means all rows, word0 None dense stripes.");
  m.def("add_cas", &add_cas, "flat"_a.noconvert(), "offset"_a, "delta"_a.noconvert(), "width"_a,
        "flat[offset:offset+k] += delta by compare-and-swap of 1, 2 or 4 floats.");
  m.def("snapshot", &snapshot, "dst"_a.noconvert(), "src"_a.noconvert(), "threads"_a = 1,
        "Copy shared floats that others may be writing; no element is torn.");
  m.def("snapshot_predict", &snapshot_predict, "dst"_a.noconvert(), "src"_a.noconvert(), "prev"_a.noconvert(),
        "coef"_a, "threads"_a = 1, "dst = src + coef * (src - prev); prev = src, in one pass.");
  m.def("snapshot_ahead", &snapshot_ahead, "dst"_a.noconvert(), "src"_a.noconvert(), "last"_a.noconvert(),
        "prev"_a.noconvert(), "horizon"_a, "trend"_a, "threads"_a = 1,
        "dst = src + horizon * (last + trend * (last - prev)), in one pass.");
  m.def("sumsq", &sumsq, "g"_a.noconvert(), "Sum of squares in float64; NaN and infinity propagate.");
  m.def("sumsq_of_all", &sumsq_of_all, "gs"_a.noconvert(), "threads"_a = 1,
        "Sum of squares of all arrays in float64, in an order that depends on their sizes only.");
  m.def("sum_rows", &sum_rows_into, "target"_a.noconvert(), "values"_a.noconvert(), "out"_a.noconvert(),
        "width"_a, "out[target[k]] += values[k], row by row.");
  bind_steps(m);
  bind_sparse(m);
  bind_muon(m);
  bind_turns(m);
}
