// Python bindings of the fused optimizer steps: moments, delta and add in one pass under one lock per stripe; or,
// where `pending` is given, moments and delta alone, which is added there and not to the parameter. Dense steps
// may be recorded in `last` and `prev`.
#include <cmath>
#include <optional>

#include "shared_arrays.h"
#include "striped.h"

using namespace mlxhog;
using namespace nb::literals;

namespace {

// The record of dense steps, if there is one: the last step of any worker and the one before, laid out as `flat`.
struct Record {
  std::optional<Flat> last, prev;

  void check(const Flat& flat, const std::optional<Flat>& pending) const {
    if (last.has_value() != prev.has_value()) throw nb::value_error("last and prev: wanted both or neither");
    if (!last) return;
    if (pending) throw nb::value_error("a pending step is not written, so it is not recorded");
    check_state("last", *last, flat);
    check_state("prev", *prev, flat);
  }
};

// Checks and walk shared by every optimizer; `make(offset)` builds its rule for a parameter there.
template <class Make>
void step_dense(LocksObject* object, int mode_number, const Flat& flat, std::size_t offset, const Values& g,
                std::uint64_t seed, int threads, const std::optional<Flat>& pending, const Record& record, Make make) {
  const Mode mode = pending ? Mode::racy : mode_of(mode_number);  // nothing shared is written
  Locks* locks = locks_for(object, mode);
  check_dense(flat, offset, g.size(), locks, mode);
  if (pending) check_state("pending", *pending, flat);
  record.check(flat, pending);
  nb::gil_scoped_release nogil;
  Step step{make(offset)};
  if (pending) {
    return in_parts(g.size(), threads, [&](std::size_t begin, std::size_t count) {
      step.add_to(pending->data() + offset, begin, begin, count);
    });
  }
  if (record.last) {
    step.last = record.last->data() + offset;
    step.prev = record.prev->data() + offset;
  }
  walk_dense(locks, mode, offset, g.size(), seed, threads, step);
}

template <class Make>
void step_rows(LocksObject* object, int mode_number, const Flat& flat, std::size_t offset, std::size_t width,
               std::optional<std::size_t> word0, const std::optional<IndexArray>& index, const Values& values,
               std::uint64_t seed, const std::optional<Flat>& pending, Make make) {
  const Mode mode = pending ? Mode::racy : mode_of(mode_number);
  Locks* locks = locks_for(object, mode);
  const RowPlace at = check_rows(flat, offset, width, word0, index, values, locks, mode, true);
  if (pending) check_state("pending", *pending, flat);
  nb::gil_scoped_release nogil;
  const Step step{make(offset)};
  if (pending) {
    for (std::size_t k = 0; k < at.rows; ++k) {
      const std::size_t row = at.all ? k : static_cast<std::size_t>(at.named[k]);
      step.add_to(pending->data() + offset, row * width, k * width, width);
    }
    return;
  }
  walk_rows(locks, mode, at.offset, at.width, at.word0, at.index(), at.rows, seed, step);
}

void check_private(const std::optional<Flat>& pending, bool shared) {
  if (pending && shared) throw nb::value_error("a pending step moves nothing shared: its moments have to be private");
}

SgdRates sgd_rates(double lr, double weight_decay, double grad_scale) {
  return {static_cast<float>(lr), static_cast<float>(weight_decay), static_cast<float>(grad_scale)};
}

MomentumRates momentum_rates(double lr, double momentum, double weight_decay, double grad_scale, bool nesterov) {
  return {static_cast<float>(lr), static_cast<float>(momentum), static_cast<float>(weight_decay),
          static_cast<float>(grad_scale), nesterov};
}

AdamwRates adamw_rates(double lr, double beta1, double beta2, double eps, double weight_decay, double bias1,
                       double bias2, double grad_scale) {
  return {static_cast<float>(lr * weight_decay),
          static_cast<float>(lr / bias1),
          static_cast<float>(beta1),
          static_cast<float>(1.0 - beta1),
          static_cast<float>(beta2),
          static_cast<float>(1.0 - beta2),
          static_cast<float>(1.0 / std::sqrt(bias2)),
          static_cast<float>(eps),
          static_cast<float>(grad_scale)};
}

}  // namespace

void bind_steps(nb::module_& m) {
  m.def("sgd_step",
        [](LocksObject* locks, int mode, Flat flat, std::size_t offset, Values g, double lr, double weight_decay,
           double grad_scale, std::uint64_t seed, int threads,
           std::optional<Flat> pending, std::optional<Flat> last, std::optional<Flat> prev) {
          step_dense(locks, mode, flat, offset, g, seed, threads, pending, {last, prev}, [&](std::size_t at) {
            return SgdRule{flat.data() + at, g.data(), sgd_rates(lr, weight_decay, grad_scale)};
          });
        },
        "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "g"_a.noconvert(), nb::kw_only(), "lr"_a,
        "weight_decay"_a = 0.0, "grad_scale"_a = 1.0, "seed"_a = 0, "threads"_a = 1,
        "pending"_a.noconvert() = nb::none(), "last"_a.noconvert() = nb::none(), "prev"_a.noconvert() = nb::none(),
        "w -= lr * (grad_scale * g + weight_decay * w).");
  m.def("sgd_rows",
        [](LocksObject* locks, int mode, Flat flat, std::size_t offset, std::size_t width,
           std::optional<std::size_t> word0, std::optional<IndexArray> index, Values values, double lr,
           double weight_decay, double grad_scale, std::uint64_t seed,
           std::optional<Flat> pending) {
          step_rows(locks, mode, flat, offset, width, word0, index, values, seed, pending, [&](std::size_t at) {
            return SgdRule{flat.data() + at, values.data(), sgd_rates(lr, weight_decay, grad_scale)};
          });
        },
        "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "width"_a, "word0"_a.none(),
        "index"_a.noconvert().none(), "values"_a.noconvert(), nb::kw_only(), "lr"_a, "weight_decay"_a = 0.0,
        "grad_scale"_a = 1.0, "seed"_a = 0, "pending"_a.noconvert() = nb::none(),
        "sgd_step on distinct ascending rows only.");
  m.def("momentum_step",
        [](LocksObject* locks, int mode, Flat flat, std::size_t offset, Values g, Flat m_flat, double lr,
           double momentum, bool nesterov, double weight_decay, double grad_scale, std::uint64_t seed, int threads,
           std::optional<Flat> pending, std::optional<Flat> last, std::optional<Flat> prev) {
          check_state("m", m_flat, flat);
          step_dense(locks, mode, flat, offset, g, seed, threads, pending, {last, prev}, [&](std::size_t at) {
            return MomentumRule{flat.data() + at, g.data(), m_flat.data() + at,
                                momentum_rates(lr, momentum, weight_decay, grad_scale, nesterov)};
          });
        },
        "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "g"_a.noconvert(), "m_flat"_a.noconvert(),
        nb::kw_only(), "lr"_a, "momentum"_a, "nesterov"_a = false, "weight_decay"_a = 0.0, "grad_scale"_a = 1.0,
        "seed"_a = 0, "threads"_a = 1, "pending"_a.noconvert() = nb::none(),
        "last"_a.noconvert() = nb::none(), "prev"_a.noconvert() = nb::none(),
        "d = grad_scale * g + weight_decay * w; m = momentum * m + d; w -= lr * m.");
  m.def("momentum_rows",
        [](LocksObject* locks, int mode, Flat flat, std::size_t offset, std::size_t width,
           std::optional<std::size_t> word0, std::optional<IndexArray> index, Values values, Flat m_flat, double lr,
           double momentum, bool nesterov, double weight_decay, double grad_scale, std::uint64_t seed,
           std::optional<Flat> pending) {
          check_state("m", m_flat, flat);
          step_rows(locks, mode, flat, offset, width, word0, index, values, seed, pending, [&](std::size_t at) {
            return MomentumRule{flat.data() + at, values.data(), m_flat.data() + at,
                                momentum_rates(lr, momentum, weight_decay, grad_scale, nesterov)};
          });
        },
        "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "width"_a, "word0"_a.none(),
        "index"_a.noconvert().none(), "values"_a.noconvert(), "m_flat"_a.noconvert(), nb::kw_only(), "lr"_a,
        "momentum"_a, "nesterov"_a = false, "weight_decay"_a = 0.0, "grad_scale"_a = 1.0, "seed"_a = 0,
        "pending"_a.noconvert() = nb::none(),
        "momentum_step on distinct ascending rows only; absent rows keep their moment.");
  m.def("adamw_step",
        [](LocksObject* locks, int mode, Flat flat, std::size_t offset, Values g, Flat m_flat, Flat v_flat,
           double lr, double beta1, double beta2, double eps, double weight_decay, double bias1, double bias2,
           double grad_scale, std::uint64_t seed, bool shared, int threads,
           std::optional<Flat> pending, std::optional<Flat> last, std::optional<Flat> prev) {
          check_private(pending, shared);
          check_state("m", m_flat, flat);
          check_state("v", v_flat, flat);
          step_dense(locks, mode, flat, offset, g, seed, threads, pending, {last, prev}, [&](std::size_t at) {
            return AdamwRule{flat.data() + at, g.data(), m_flat.data() + at, v_flat.data() + at,
                             adamw_rates(lr, beta1, beta2, eps, weight_decay, bias1, bias2, grad_scale),
                             shared};
          });
        },
        "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "g"_a.noconvert(), "m_flat"_a.noconvert(),
        "v_flat"_a.noconvert(), nb::kw_only(), "lr"_a, "beta1"_a, "beta2"_a, "eps"_a, "weight_decay"_a = 0.0,
        "bias1"_a = 1.0, "bias2"_a = 1.0, "grad_scale"_a = 1.0, "seed"_a = 0, "shared"_a = false,
        "threads"_a = 1, "pending"_a.noconvert() = nb::none(), "last"_a.noconvert() = nb::none(),
        "prev"_a.noconvert() = nb::none(),
        "AdamW: bias1 and bias2 are 1 - beta^t; m and v are private, or shared and laid out as the parameters.");
  m.def("adamw_rows",
        [](LocksObject* locks, int mode, Flat flat, std::size_t offset, std::size_t width,
           std::optional<std::size_t> word0, std::optional<IndexArray> index, Values values, Flat m_flat, Flat v_flat,
           double lr, double beta1, double beta2, double eps, double weight_decay, double bias1, double bias2,
           double grad_scale, std::uint64_t seed, bool shared,
           std::optional<Flat> pending) {
          check_private(pending, shared);
          check_state("m", m_flat, flat);
          check_state("v", v_flat, flat);
          step_rows(locks, mode, flat, offset, width, word0, index, values, seed, pending, [&](std::size_t at) {
            return AdamwRule{flat.data() + at, values.data(), m_flat.data() + at, v_flat.data() + at,
                             adamw_rates(lr, beta1, beta2, eps, weight_decay, bias1, bias2, grad_scale),
                             shared};
          });
        },
        "locks"_a.none(), "mode"_a, "flat"_a.noconvert(), "offset"_a, "width"_a, "word0"_a.none(),
        "index"_a.noconvert().none(), "values"_a.noconvert(), "m_flat"_a.noconvert(), "v_flat"_a.noconvert(),
        nb::kw_only(), "lr"_a, "beta1"_a, "beta2"_a, "eps"_a, "weight_decay"_a = 0.0, "bias1"_a = 1.0,
        "bias2"_a = 1.0, "grad_scale"_a = 1.0, "seed"_a = 0, "shared"_a = false,
        "pending"_a.noconvert() = nb::none(),
        "adamw_step on distinct ascending rows only; absent rows keep their moments (torch SparseAdam).");
}
