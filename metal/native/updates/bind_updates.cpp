// Python bindings of locks, adds and steps of optimizers; bind_turns.cpp has reads, and accesses whose order is noted.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../ops/memory.h"
#include "../ops/newton_schulz.h"
#include "../ops/shapes.h"
#include "add_at.h"
#include "cas_add.h"
#include "elements.h"
#include "process_life.h"
#include "shared_arrays.h"

using namespace mlxhog;
using namespace nb::literals;

void bind_turns(nb::module_&);

namespace {

void add(LocksObject* object, int mode_number, Flat flat, std::size_t offset, Values delta,
         const std::optional<RowsOf>& rows, std::uint64_t seed) {
  const Mode mode = mode_of(mode_number);
  const UpdateTarget target = update_target(locks_for(object, mode), mode, flat, offset, delta.size(), rows, false);
  nb::gil_scoped_release nogil;
  target.walk(seed, 1, AddStep{flat.data() + offset, delta.data()});
}

void add_at(LocksObject* object, int mode_number, Flat flat, std::size_t offset, std::size_t size, std::size_t width,
            std::optional<std::size_t> word0, IndexArray index, Values values, std::uint64_t seed) {
  const Mode mode = mode_of(mode_number);
  require(mode != Mode::in_turn, "scattered elements are not added in turn: such steps read without a lock");
  Locks* locks = locks_for(object, mode);
  require(index.size() == values.size(), index.size(), " places for ", values.size(), " values");
  check_parameter(flat.size(), offset, size, width, word0, locks, mode);
  const std::vector<std::int32_t> places = checked_index("element", index, size, true);
  nb::gil_scoped_release nogil;
  walk_at(locks, mode, Scattered{flat.data(), offset, places.data(), values.data(), places.size()}, width,
          word0 ? static_cast<std::ptrdiff_t>(*word0) : kStripes, seed);
}

void add_cas(Flat flat, std::size_t offset, Values delta, int width) {
  check_parameter(flat.size(), offset, delta.size(), 1, std::nullopt, nullptr, Mode::cas);
  require(width == 1 || width == 2, "width: wanted 1 or 2 floats");
  nb::gil_scoped_release nogil;
  cas_add(flat.data() + offset, delta.data(), delta.size(), width);
}

using Write = std::tuple<double, double, double, double>;

float single(double x) { return static_cast<float>(x); }

const Kernel* kernel_of(const std::string& name, std::size_t moments, std::size_t rates) {
  if (name == "gradient" && moments == 0 && rates == 0) return nullptr;
  for (const Kernel& kernel : kKernels)
    if (kernel.name == name && kernel.moments == moments && kernel.rates == rates) return &kernel;
  require(false, "no kernel is called ", name, " and has ", moments, " moments and ", rates, " rates");
  return nullptr;
}

void step(const std::string& name, const std::vector<double>& own, const Write& write, LocksObject* object,
          int mode_number, Flat flat, std::size_t offset, Values g, std::vector<Flat> moments,
          const std::optional<RowsOf>& rows, bool shared, std::uint64_t seed, int threads, std::optional<Flat> last,
          std::optional<Flat> prev, std::optional<Flat> pending, std::optional<Flat> out) {
  const Mode mode = pending ? Mode::racy : mode_of(mode_number);  // nothing shared is written
  Locks* locks = locks_for(object, mode);
  const Kernel* kernel = kernel_of(name, moments.size(), own.size());
  require(!shared || (!pending && kernel != nullptr && kernel->means),
          "a pending step moves nothing shared, and only means are shared");
  require(last.has_value() == prev.has_value(), "last and prev: wanted both or neither");
  require(!last || !(rows || pending), "only steps that are written to dense parameters are recorded");
  const UpdateTarget target = update_target(locks, mode, flat, offset, g.size(), rows, true);
  std::array<float, kMaxRates> rates;
  std::transform(own.begin(), own.end(), rates.begin(), single);
  const auto [lr, scale, coupled, decoupled] = write;
  const float of_write[] = {single(lr), single(scale), single(coupled), single(decoupled)};
  float* w = flat.data() + offset;
  Step step{{kernel, g.data(), w, {}, rates.data(), shared}, w, of_write, floats_of("last", last, target.floats),
            floats_of("prev", prev, target.floats), floats_of("pending", pending, target.floats),
            floats_of("out", out, g.size())};
  for (std::size_t k = 0; k < moments.size(); ++k)
    step.moments.moments[k] = floats_of("a moment", std::optional(moments[k]), target.floats);
  nb::gil_scoped_release nogil;
  target.walk(seed, threads, step);
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
  require(width != 0 && out.size() % width == 0 && values.size() == target.size() * width,
          "sum_rows: values must hold len(target) rows and out whole rows of that width");
  const std::vector<std::int32_t> rows = checked_index("row", target, out.size() / width, false);
  nb::gil_scoped_release nogil;
  sum_rows(rows.data(), values.data(), out.data(), rows.size(), width);
}

}  // namespace

void bind_updates(nb::module_& m) {
  nb::class_<LocksObject>(m, "Locks", "Crash-safe locks of one worker; see metal/native/updates/locks.h.")
      .def(nb::init<Words, Bytes, std::uint32_t, std::uint32_t>(), "words"_a.noconvert(), "workers"_a.noconvert(),
           "slot"_a, "generation"_a)
      .def_prop_ro("takeovers", &LocksObject::takeovers, "Locks taken over from dead workers so far.")
      .def_prop_ro("word", &LocksObject::word, "The value of a lock word that this worker holds.")
      .def("__len__", &LocksObject::size)
      .def("acquire",
           [](LocksObject& self, std::size_t i) {
             if (i >= self.size()) throw nb::index_error("no such lock word");
             nb::gil_scoped_release nogil;
             self.lock(i);
           },
           "i"_a, "Take lock i, waiting for a live owner and taking over from a dead one.")
      .def("release",
           [](LocksObject& self, std::size_t i) {
             if (i >= self.size()) throw nb::index_error("no such lock word");
             if (!self.owns(i)) throw nb::value_error("release of a lock that this worker does not hold");
             self.unlock(i);
           },
           "i"_a, "Release lock i.");
  m.def("sweep_locks",
        [](Words words, std::uint32_t slot, std::optional<std::uint32_t> generation) {
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
  m.attr("WIDEST_CAS") = kWidestCas;  // floats in a compare-and-swap of `cas` mode
  m.def("add", &add, "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "delta"_a.noconvert(),
        "rows"_a = nb::none(), "seed"_a = 0,
        "flat[offset:offset+k] += delta; or of rows, duplicates add up: (index, width, first lock word, floats of the\n"
        "parameter), where index None means all and word None dense stripes.");
  m.def("add_at", &add_at, "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "size"_a, "width"_a,
        "word0"_a.none(), "index"_a.noconvert(), "values"_a.noconvert(), "seed"_a = 0,
        "flat[offset + index] += values, index ascending; word0 None means dense stripes.");
  m.def("add_cas", &add_cas, "flat"_a.noconvert(), "offset"_a, "delta"_a.noconvert(), "width"_a,
        "flat[offset:offset+k] += delta by compare-and-swap of 1 or 2 floats.");
  m.def("sumsq", &sumsq, "g"_a.noconvert(), "Sum of squares in float64; NaN and infinity propagate.");
  m.def("sumsq_of_all", &sumsq_of_all, "gs"_a.noconvert(), "threads"_a = 1,
        "Sum of squares of all arrays in float64, in an order that depends on their sizes only.");
  m.def("sum_rows", &sum_rows_into, "target"_a.noconvert(), "values"_a.noconvert(), "out"_a.noconvert(),
        "width"_a, "out[target[k]] += values[k], row by row.");
  m.def("step", &step, "kernel"_a, "rates"_a, "write"_a, "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a,
        "g"_a.noconvert(), "moments"_a.noconvert() = std::vector<Flat>(), nb::kw_only(), "rows"_a = nb::none(),
        "shared"_a = false, "seed"_a = 0, "threads"_a = 1, "last"_a.noconvert() = nb::none(),
        "prev"_a.noconvert() = nb::none(), "pending"_a.noconvert() = nb::none(), "out"_a.noconvert() = nb::none(),
        "Take a step along a direction u, by a kernel of metal/native/updates/moments.h, or \"gradient\":\n"
        "w -= lr * (scale * u + coupled * w) + decoupled * w, with write = (lr, scale, coupled, decoupled). Of some\n"
        "rows, ascending and distinct: rows = (index, width, first lock word, floats of the parameter). `out` takes u\n"
        "alone; `pending` takes the step in place of the parameter; `last` and `prev` record it.");
  def(m, "newton_schulz", "xs us: R_j C_j, scales, coefficients: K 3",
      "us[i] = scales[i] * newton_schulz(xs[i]), by odd quintics a s + b s^3 + c s^5 of the singular values; or of each "
      "`rows` rows alone. us[i] may be xs[i].",
      [](Sizes& sizes, std::vector<Floats> xs, std::vector<Result> us, std::vector<double> scales, Floats coefficients,
         Index rows, int threads) {
        sizes.expect_positive({"K"});
        require(rows >= 0, "rows is ", rows, ", expected 0 or more");
        parallel_for(static_cast<Index>(xs.size()), threads, [&](Index i) {
          const Index height = sizes.at("R_j", i), cols = sizes.at("C_j", i);
          if (height == 0 || cols == 0) return;
          const Buffer x = uninitialized(height * cols);  // is scaled on the way
          std::copy_n(xs[i], height * cols, x.get());
          const Index together = rows == 0 ? height : std::min(height, rows);
          for (Index row = 0; row < height; row += together)
            newton_schulz(std::min(together, height - row), cols, x.get() + row * cols, us[i] + row * cols,
                          reinterpret_cast<const NewtonSchulzStep*>(coefficients), static_cast<int>(sizes["K"]),
                          static_cast<float>(scales[i]));
        });
      }, "rows"_a = 0);
  bind_turns(m);
}
