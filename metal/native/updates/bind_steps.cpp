// Python bindings of optimizer steps: direction, delta and add in one pass under one lock per stripe or row.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "shared_arrays.h"
#include "striped.h"

using namespace mlxhog;
using namespace nb::literals;

namespace {

using Write = std::tuple<double, double, double, double>;
// Rows of a parameter: which (none is all), their width, the first lock word (none is dense stripes), floats in all.
using RowsOf = std::tuple<std::optional<IndexArray>, std::size_t, std::optional<std::size_t>, std::size_t>;

float single(double x) { return static_cast<float>(x); }

const Kernel* kernel_of(const std::string& name, std::size_t moments, std::size_t rates) {
  if (name == "gradient" && moments == 0 && rates == 0) return nullptr;
  for (const Kernel& kernel : kKernels)
    if (kernel.name == name && kernel.moments == moments && kernel.rates == rates) return &kernel;
  throw nb::value_error(("no kernel is called " + name + " and has " + std::to_string(moments) + " moments and " +
                         std::to_string(rates) + " rates").c_str());
}

float* part(const char* name, const std::optional<Flat>& array, std::size_t floats) {
  if (!array) return nullptr;
  if (array->size() != floats)
    throw nb::value_error((std::string(name) + " has " + std::to_string(array->size()) + " floats, its parameter " +
                           std::to_string(floats)).c_str());
  return array->data();
}

void step(const std::string& name, const std::vector<double>& own, const Write& write, LocksObject* object,
          int mode_number, Flat flat, std::size_t offset, Values g, std::vector<Flat> moments,
          const std::optional<RowsOf>& rows, bool shared, std::uint64_t seed, int threads, std::optional<Flat> last,
          std::optional<Flat> prev, std::optional<Flat> pending, std::optional<Flat> out) {
  const Mode mode = pending ? Mode::racy : mode_of(mode_number);  // nothing shared is written
  Locks* locks = locks_for(object, mode);
  const Kernel* kernel = kernel_of(name, moments.size(), own.size());
  if (shared && (pending || kernel == nullptr || !kernel->means))
    throw nb::value_error("a pending step moves nothing shared, and only means are shared");
  if (last.has_value() != prev.has_value()) throw nb::value_error("last and prev: wanted both or neither");
  if (last && (rows || pending)) throw nb::value_error("only steps that are written to dense parameters are recorded");
  const std::size_t floats = rows ? std::get<3>(*rows) : g.size();
  check_dense(flat, offset, floats, rows ? nullptr : locks, rows ? Mode::racy : mode);
  std::array<float, kMostRates> rates;
  std::transform(own.begin(), own.end(), rates.begin(), single);
  const auto [lr, scale, coupled, decoupled] = write;
  const float of_write[] = {single(lr), single(scale), single(coupled), single(decoupled)};
  float* w = flat.data() + offset;
  Step step{{kernel, g.data(), w, {}, rates.data(), shared}, w, of_write, part("last", last, floats),
            part("prev", prev, floats), part("pending", pending, floats), part("out", out, g.size())};
  for (std::size_t k = 0; k < moments.size(); ++k) step.moments.moments[k] = part("a moment", moments[k], floats);
  if (!rows) {
    nb::gil_scoped_release nogil;
    return walk_dense(locks, mode, offset, g.size(), seed, threads, step);
  }
  const auto& [index, width, word0, height] = *rows;
  const RowPlace at = check_rows(flat, offset, width, word0, index, g, locks, mode, true);
  if (at.rows > 0 && ((at.all ? at.rows - 1 : static_cast<std::size_t>(at.named.back())) + 1) * width > floats)
    throw nb::value_error("rows are outside their parameter");
  nb::gil_scoped_release nogil;
  walk_rows(locks, mode, at.offset, at.width, at.word0, at.index(), at.rows, seed, step);
}

}  // namespace

void bind_steps(nb::module_& m) {
  m.def("step", &step, "kernel"_a, "rates"_a, "write"_a, "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a,
        "g"_a.noconvert(), "moments"_a.noconvert() = std::vector<Flat>(), nb::kw_only(), "rows"_a = nb::none(),
        "shared"_a = false, "seed"_a = 0, "threads"_a = 1, "last"_a.noconvert() = nb::none(),
        "prev"_a.noconvert() = nb::none(), "pending"_a.noconvert() = nb::none(), "out"_a.noconvert() = nb::none(),
        "Take a step along a direction u, by a kernel of metal/native/updates/moments.h, or \"gradient\":\n"
        "w -= lr * (scale * u + coupled * w) + decoupled * w, with write = (lr, scale, coupled, decoupled). Of some\n"
        "rows, ascending and distinct: rows = (index, width, first lock word, floats of the parameter). `out` takes u\n"
        "alone; `pending` takes the step in place of the parameter; `last` and `prev` record it.");
}
