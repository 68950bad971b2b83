// Python names of the recurrences whose state is a matrix, other than the mLSTM cell.
#include <optional>
#include <string>

#include "arguments.h"
#include "decay.h"

namespace mlxhog {
namespace {

Index axis(const In& a, int j) { return static_cast<Index>(a.shape(j)); }

DecayShape decay_shape(const In& q, const In& k, const In& v, const In& log_decay, const std::optional<In>& state,
                       float scale) {
  if (q.ndim() != 4 || v.ndim() != 4 || log_decay.ndim() != 4)
    throw nb::value_error("q, v and log_decay must be (B, S, NH, D)");
  const DecayShape s{axis(q, 0), axis(q, 1), axis(q, 2), axis(q, 3), axis(v, 3), axis(log_decay, 3), scale};
  const Index positions = s.B * s.S * s.NH;
  if (s.A != 1 && s.A != s.DK)
    throw nb::value_error(("log_decay has " + std::to_string(s.A) + " numbers per head, expected 1 or " +
                           std::to_string(s.DK))
                              .c_str());
  expect("k", k, size(q));
  expect("v", v, positions * s.DV);
  expect("log_decay", log_decay, positions * s.A);
  if (state) expect("state", *state, s.B * s.NH * s.DK * s.DV);
  return s;
}

void decay(const In& q, const In& k, const In& v, const In& log_decay, const std::optional<In>& state, Out h, Out last,
           std::optional<Out> kept, float scale, int threads) {
  const DecayShape s = decay_shape(q, k, v, log_decay, state, scale);
  const Index matrix = s.B * s.NH * s.DK * s.DV;
  expect("h", h, size(v));
  expect("last", last, matrix);
  if (kept) expect("kept", *kept, matrix * s.chunks());
  nb::gil_scoped_release release;
  decay_forward(s, {q.data(), k.data(), v.data(), log_decay.data(), data_or_null(state)}, h.data(), last.data(),
                data_or_null(kept), threads);
}

void decay_grad(const In& q, const In& k, const In& v, const In& log_decay, const In& kept, const In& dh,
                const std::optional<In>& d_last, Out dq, Out dk, Out dv, Out d_log_decay, std::optional<Out> d_state,
                float scale, int threads) {
  const DecayShape s = decay_shape(q, k, v, log_decay, std::nullopt, scale);
  const Index matrix = s.B * s.NH * s.DK * s.DV;
  expect("kept", kept, matrix * s.chunks());
  expect("dh", dh, size(v));
  if (d_last) expect("d_last", *d_last, matrix);
  expect("dq", dq, size(q));
  expect("dk", dk, size(k));
  expect("dv", dv, size(v));
  expect("d_log_decay", d_log_decay, size(log_decay));
  if (d_state) expect("d_state", *d_state, matrix);
  nb::gil_scoped_release release;
  decay_backward(s, {q.data(), k.data(), v.data(), log_decay.data(), nullptr}, kept.data(), dh.data(),
                 data_or_null(d_last),
                 {dq.data(), dk.data(), dv.data(), d_log_decay.data(), data_or_null(d_state)}, threads);
}

Index decay_chunks(Index S, Index DK) {
  if (S < 0 || DK < 1) throw nb::value_error("S must be at least 0 and DK at least 1");
  DecayShape s{};
  s.S = S, s.DK = DK;
  return s.chunks();
}

}  // namespace
}  // namespace mlxhog

void bind_recurrences(nb::module_& m) {
  using namespace nb::literals;
  using namespace mlxhog;
  m.def("decay", &decay, A("q"), A("k"), A("v"), A("log_decay"), A("state").none(), A("h"), A("last"),
        A("kept").none(), nb::kw_only(), "scale"_a, "threads"_a,
        "S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T, h_t = scale S_t^T q_t. q, k (B,S,NH,DK); v, h "
        "(B,S,NH,DV); log_decay (B,S,NH,DK or 1); state and last (B,NH,DK,DV); kept (B,NH,decay_chunks,DK,DV), for "
        "the gradient.");
  m.def("decay_grad", &decay_grad, A("q"), A("k"), A("v"), A("log_decay"), A("kept"), A("dh"), A("d_last").none(),
        A("dq"), A("dk"), A("dv"), A("d_log_decay"), A("d_state").none(), nb::kw_only(), "scale"_a, "threads"_a);
  m.def("decay_chunks", &decay_chunks, nb::kw_only(), "S"_a, "DK"_a, "How many states `decay` keeps per head.");
}
