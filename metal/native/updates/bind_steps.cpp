// Python bindings of the fused optimizer steps: moments, delta and add in one pass under one lock per stripe; or,
// where `pending` is given, moments and delta alone, which is added there and not to the parameter. Dense steps
// may be recorded in `last` and `prev`.
#include <nanobind/stl/string.h>

#include <optional>
#include <string>

#include "shared_arrays.h"
#include "striped.h"

using namespace mlxhog;
using namespace nb::literals;

namespace {

Rule rule_of(const std::string& name, const Flat& flat, std::size_t offset, const Values& g,
             const std::optional<Flat>& m, const std::optional<Flat>& v, const Rates& hp, double grad_scale,
             const std::optional<Flat>& pending) {
  const char* const names[] = {"sgd", "momentum", "adam", "adam_shared"};
  int kind = 0;
  while (kind < 4 && name != names[kind]) ++kind;
  if (kind == 4) throw nb::value_error(("no rule is called " + name).c_str());
  if (m.has_value() != (kind >= Rule::momentum) || v.has_value() != (kind >= Rule::adam))
    throw nb::value_error((name + ": momentum has m, adam m and v, and no rule has other moments").c_str());
  if (m) check_state("m", *m, flat);
  if (v) check_state("v", *v, flat);
  if (pending) check_state("pending", *pending, flat);
  if (pending && kind == Rule::adam_shared)
    throw nb::value_error("a pending step moves nothing shared: its moments have to be private");
  return {static_cast<Rule::Kind>(kind), flat.data() + offset, g.data(), m ? m->data() + offset : nullptr,
          v ? v->data() + offset : nullptr, check_rates(hp), static_cast<float>(grad_scale)};
}

void step(const std::string& name, LocksObject* object, int mode_number, Flat flat, std::size_t offset, Values g,
          std::optional<Flat> m, std::optional<Flat> v, Rates hp, double grad_scale, std::uint64_t seed, int threads,
          std::optional<Flat> pending, std::optional<Flat> last, std::optional<Flat> prev) {
  const Mode mode = pending ? Mode::racy : mode_of(mode_number);  // nothing shared is written
  Locks* locks = locks_for(object, mode);
  check_dense(flat, offset, g.size(), locks, mode);
  Step step{rule_of(name, flat, offset, g, m, v, hp, grad_scale, pending)};
  if (last.has_value() != prev.has_value()) throw nb::value_error("last and prev: wanted both or neither");
  if (last && pending) throw nb::value_error("a pending step is not written, so it is not recorded");
  if (last) {
    check_state("last", *last, flat);
    check_state("prev", *prev, flat);
    step.last = last->data() + offset;
    step.prev = prev->data() + offset;
  }
  nb::gil_scoped_release nogil;
  if (!pending) return walk_dense(locks, mode, offset, g.size(), seed, threads, step);
  in_parts(g.size(), threads, [&](std::size_t begin, std::size_t count) {
    step.add_to(pending->data() + offset, begin, begin, count);
  });
}

void step_rows(const std::string& name, LocksObject* object, int mode_number, Flat flat, std::size_t offset,
               std::size_t width, std::optional<std::size_t> word0, std::optional<IndexArray> index, Values values,
               std::optional<Flat> m, std::optional<Flat> v, Rates hp, double grad_scale, std::uint64_t seed,
               std::optional<Flat> pending) {
  const Mode mode = pending ? Mode::racy : mode_of(mode_number);
  Locks* locks = locks_for(object, mode);
  const RowPlace at = check_rows(flat, offset, width, word0, index, values, locks, mode, true);
  const Step step{rule_of(name, flat, offset, values, m, v, hp, grad_scale, pending)};
  nb::gil_scoped_release nogil;
  if (!pending) return walk_rows(locks, mode, at.offset, at.width, at.word0, at.index(), at.rows, seed, step);
  for (std::size_t k = 0; k < at.rows; ++k) {
    const std::size_t row = at.all ? k : static_cast<std::size_t>(at.named[k]);
    step.add_to(pending->data() + offset, row * width, k * width, width);
  }
}

}  // namespace

void bind_steps(nb::module_& m) {
  m.def("step", &step, "rule"_a, "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "g"_a.noconvert(),
        "m"_a.noconvert().none(), "v"_a.noconvert().none(), "hp"_a.noconvert(), nb::kw_only(), "grad_scale"_a = 1.0,
        "seed"_a = 0, "threads"_a = 1, "pending"_a.noconvert() = nb::none(), "last"_a.noconvert() = nb::none(),
        "prev"_a.noconvert() = nb::none(),
        "Take a step of a dense parameter by a rule: sgd, momentum, adam or adam_shared, with its rates hp\n"
        "(mlxhog.metal.kernels.step_rules) and its moments m and v, laid out as the parameters.");
  m.def("step_rows", &step_rows, "rule"_a, "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "width"_a,
        "word0"_a.none(), "index"_a.noconvert().none(), "values"_a.noconvert(), "m"_a.noconvert().none(),
        "v"_a.noconvert().none(), "hp"_a.noconvert(), nb::kw_only(), "grad_scale"_a = 1.0, "seed"_a = 0,
        "pending"_a.noconvert() = nb::none(),
        "step on distinct ascending rows only; absent rows keep their moments (torch SparseAdam).");
}
