// Python names of the recurrences whose state is a matrix, other than the mLSTM cell.
#include <algorithm>
#include <optional>
#include <string>

#include "arguments.h"
#include "decay.h"
#include "delta.h"
#include "dplr.h"
#include "regression.h"
#include "scan.h"

namespace mlxhog {
namespace {

DecayShape decay_shape(const In& q, const In& k, const In& v, const In& log_decay, const std::optional<In>& state,
                       float scale, bool by_value) {
  if (k.ndim() != 4 || v.ndim() != 4 || log_decay.ndim() != 4)
    throw nb::value_error("k, v and log_decay must be (B, S, NH, D)");
  const DecayShape s{axis(k, 0), axis(k, 1), axis(k, 2), axis(k, 3), axis(v, 3), axis(log_decay, 3), scale, by_value};
  const Index positions = product({s.B, s.S, s.NH});
  if (s.A != 1 && s.A != s.DK)
    throw nb::value_error(("log_decay has " + std::to_string(s.A) + " numbers per head, expected 1 or " +
                           std::to_string(s.DK))
                              .c_str());
  expect("v", v, {positions, s.DV});
  expect("q", q, size(by_value ? v : k));
  expect("log_decay", log_decay, {positions, s.A});
  if (state) expect("state", *state, {s.B, s.NH, s.DK, s.DV});
  return s;
}

void decay(const In& q, const In& k, const In& v, const In& log_decay, const std::optional<In>& state, Out h, Out last,
           std::optional<Out> kept, float scale, bool by_value, int threads) {
  const DecayShape s = decay_shape(q, k, v, log_decay, state, scale, by_value);
  const Index matrix = product({s.B, s.NH, s.DK, s.DV});
  expect("h", h, size(by_value ? k : v));
  expect("last", last, matrix);
  if (kept) expect("kept", *kept, {matrix, s.chunks()});
  nb::gil_scoped_release release;
  decay_forward(s, {q.data(), k.data(), v.data(), log_decay.data(), data_or_null(state)}, h.data(), last.data(),
                data_or_null(kept), threads);
}

void decay_grad(const In& q, const In& k, const In& v, const In& log_decay, const In& kept, const In& dh,
                const std::optional<In>& d_last, Out dq, Out dk, Out dv, Out d_log_decay, std::optional<Out> d_state,
                float scale, bool by_value, int threads) {
  const DecayShape s = decay_shape(q, k, v, log_decay, std::nullopt, scale, by_value);
  const Index matrix = product({s.B, s.NH, s.DK, s.DV});
  expect("kept", kept, {matrix, s.chunks()});
  expect("dh", dh, size(by_value ? k : v));
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

DeltaShape delta_shape(const In& q, const In& k, const In& v, const In& log_decay, const In& beta,
                       const std::optional<In>& state) {
  if (q.ndim() != 4 || v.ndim() != 4) throw nb::value_error("q and v must be (B, S, NH, D)");
  const DeltaShape s{axis(q, 0), axis(q, 1), axis(q, 2), axis(q, 3), axis(v, 3)};
  const Index positions = product({s.B, s.S, s.NH});
  expect("k", k, size(q));
  expect("v", v, {positions, s.DV});
  expect("log_decay", log_decay, positions);
  expect("beta", beta, positions);
  if (state) expect("state", *state, {s.B, s.NH, s.DK, s.DV});
  return s;
}

void delta(const In& q, const In& k, const In& v, const In& log_decay, const In& beta, const std::optional<In>& state,
           Out h, Out last, std::optional<Out> kept, std::optional<Out> held, int threads) {
  const DeltaShape s = delta_shape(q, k, v, log_decay, beta, state);
  const Index matrix = product({s.B, s.NH, s.DK, s.DV});
  expect("h", h, size(v));
  expect("last", last, matrix);
  if (kept) expect("kept", *kept, {matrix, s.chunks()});
  if (held) expect("held", *held, size(v));
  nb::gil_scoped_release release;
  delta_forward(s, {q.data(), k.data(), v.data(), log_decay.data(), beta.data(), data_or_null(state)}, h.data(),
                last.data(), data_or_null(kept), data_or_null(held), threads);
}

void delta_grad(const In& q, const In& k, const In& v, const In& log_decay, const In& beta, const In& kept,
                const In& held, const In& dh, const std::optional<In>& d_last, Out dq, Out dk, Out dv, Out d_log_decay,
                Out d_beta, std::optional<Out> d_state, int threads) {
  const DeltaShape s = delta_shape(q, k, v, log_decay, beta, std::nullopt);
  const Index matrix = product({s.B, s.NH, s.DK, s.DV});
  expect("kept", kept, {matrix, s.chunks()});
  expect("held", held, size(v));
  expect("dh", dh, size(v));
  if (d_last) expect("d_last", *d_last, matrix);
  expect("dq", dq, size(q));
  expect("dk", dk, size(k));
  expect("dv", dv, size(v));
  expect("d_log_decay", d_log_decay, size(log_decay));
  expect("d_beta", d_beta, size(beta));
  if (d_state) expect("d_state", *d_state, matrix);
  nb::gil_scoped_release release;
  delta_backward(s, {q.data(), k.data(), v.data(), log_decay.data(), beta.data(), nullptr}, kept.data(), held.data(),
                 dh.data(), data_or_null(d_last),
                 {dq.data(), dk.data(), dv.data(), d_log_decay.data(), d_beta.data(), data_or_null(d_state)}, threads);
}

DeltaShape dplr_shape(const In& q, const In& k, const In& v, const In& log_decay, const In& read, const In& removal,
                      const std::optional<In>& state) {
  if (q.ndim() != 4 || v.ndim() != 4) throw nb::value_error("q and v must be (B, S, NH, D)");
  const DeltaShape s{axis(q, 0), axis(q, 1), axis(q, 2), axis(q, 3), axis(v, 3)};
  expect("k", k, size(q));
  expect("v", v, {product({s.B, s.S, s.NH}), s.DV});
  expect("log_decay", log_decay, size(q));
  expect("read", read, size(q));
  expect("removal", removal, size(q));
  if (state) expect("state", *state, {s.B, s.NH, s.DK, s.DV});
  return s;
}

void dplr(const In& q, const In& k, const In& v, const In& log_decay, const In& read, const In& removal,
          const std::optional<In>& state, Out h, Out last, std::optional<Out> kept, std::optional<Out> held,
          int threads) {
  const DeltaShape s = dplr_shape(q, k, v, log_decay, read, removal, state);
  const Index matrix = product({s.B, s.NH, s.DK, s.DV});
  expect("h", h, size(v));
  expect("last", last, matrix);
  if (kept) expect("kept", *kept, {matrix, s.chunks()});
  if (held) expect("held", *held, size(v));
  nb::gil_scoped_release release;
  dplr_forward(s,
               {q.data(), k.data(), v.data(), log_decay.data(), read.data(), removal.data(), data_or_null(state)},
               h.data(), last.data(), data_or_null(kept), data_or_null(held), threads);
}

void dplr_grad(const In& q, const In& k, const In& v, const In& log_decay, const In& read, const In& removal,
               const In& kept, const In& held, const In& dh, const std::optional<In>& d_last, Out dq, Out dk, Out dv,
               Out d_log_decay, Out d_read, Out d_removal, std::optional<Out> d_state, int threads) {
  const DeltaShape s = dplr_shape(q, k, v, log_decay, read, removal, std::nullopt);
  const Index matrix = product({s.B, s.NH, s.DK, s.DV});
  expect("kept", kept, {matrix, s.chunks()});
  expect("held", held, size(v));
  expect("dh", dh, size(v));
  if (d_last) expect("d_last", *d_last, matrix);
  expect("dq", dq, size(q));
  expect("dk", dk, size(q));
  expect("dv", dv, size(v));
  expect("d_log_decay", d_log_decay, size(q));
  expect("d_read", d_read, size(q));
  expect("d_removal", d_removal, size(q));
  if (d_state) expect("d_state", *d_state, matrix);
  nb::gil_scoped_release release;
  dplr_backward(s, {q.data(), k.data(), v.data(), log_decay.data(), read.data(), removal.data(), nullptr}, kept.data(),
                held.data(), dh.data(), data_or_null(d_last),
                {dq.data(), dk.data(), dv.data(), d_log_decay.data(), d_read.data(), d_removal.data(),
                 data_or_null(d_state)},
                threads);
}

void bound_regression(const In& q, const In& k, const In& log_decay, const In& ridge, const std::optional<In>& state,
                      Out x, std::optional<Out> last, std::optional<Out> kept, Index steps, int threads) {
  const DecayShape s = decay_shape(q, k, k, log_decay, state, 1.0f, false);
  const Index matrix = product({s.B, s.NH, s.DK, s.DK});
  expect("log_decay", log_decay, {s.B, s.S, s.NH, 1});
  expect("ridge", ridge, {s.NH, s.DK});
  expect("x", x, size(q));
  if (last) expect("last", *last, matrix);
  if (kept) expect("kept", *kept, {matrix, s.chunks()});
  nb::gil_scoped_release release;
  regression(s, {q.data(), k.data(), log_decay.data(), ridge.data(), data_or_null(state)}, steps, x.data(),
             data_or_null(last), data_or_null(kept), threads);
}

ScanShape scan_shape(const In& u, const In& dt, const In& A, const In& Bt, const In& Ct,
                     const std::optional<In>& state) {
  if (u.ndim() != 3 || A.ndim() != 2) throw nb::value_error("u must be (B, S, C) and A (C, N)");
  const ScanShape s{axis(u, 0), axis(u, 1), axis(u, 2), axis(A, 1)};
  expect("dt", dt, size(u));
  expect("A", A, {s.C, s.N});
  expect("Bt", Bt, {s.B, s.S, s.N});
  expect("Ct", Ct, {s.B, s.S, s.N});
  if (state) expect("state", *state, {s.B, s.C, s.N});
  return s;
}

void scan(const In& u, const In& dt, const In& A, const In& Bt, const In& Ct, const std::optional<In>& state, Out y,
          Out last, std::optional<Out> kept, int threads) {
  const ScanShape s = scan_shape(u, dt, A, Bt, Ct, state);
  expect("y", y, size(u));
  expect("last", last, {s.B, s.C, s.N});
  if (kept) expect("kept", *kept, s.kept());
  nb::gil_scoped_release release;
  scan_forward(s, {u.data(), dt.data(), A.data(), Bt.data(), Ct.data(), data_or_null(state)}, y.data(), last.data(),
               data_or_null(kept), threads);
}

void scan_grad(const In& u, const In& dt, const In& A, const In& Bt, const In& Ct, const In& kept, const In& dy,
               const std::optional<In>& d_last, Out du, Out ddt, Out dA, Out dBt, Out dCt, std::optional<Out> d_state,
               int threads) {
  const ScanShape s = scan_shape(u, dt, A, Bt, Ct, std::nullopt);
  const Index states = product({s.B, s.C, s.N});
  expect("kept", kept, s.kept());
  expect("dy", dy, size(u));
  if (d_last) expect("d_last", *d_last, states);
  expect("du", du, size(u));
  expect("ddt", ddt, size(dt));
  expect("dA", dA, size(A));
  expect("dBt", dBt, size(Bt));
  expect("dCt", dCt, size(Ct));
  if (d_state) expect("d_state", *d_state, states);
  nb::gil_scoped_release release;
  scan_backward(s, {u.data(), dt.data(), A.data(), Bt.data(), Ct.data(), nullptr}, kept.data(), dy.data(),
                data_or_null(d_last),
                {du.data(), ddt.data(), dA.data(), dBt.data(), dCt.data(), data_or_null(d_state)}, threads);
}

Index scan_kept(Index B, Index S, Index C, Index N) {
  if (std::min({B, S, C, N}) < 0) throw nb::value_error("B, S, C and N must be at least 0");
  return ScanShape{B, S, C, N}.kept();
}

}  // namespace
}  // namespace mlxhog

void bind_recurrences(nb::module_& m) {
  using namespace nb::literals;
  using namespace mlxhog;
  m.def("decay", &decay, A("q"), A("k"), A("v"), A("log_decay"), A("state").none(), A("h"), A("last"),
        A("kept").none(), nb::kw_only(), "scale"_a, "by_value"_a = false, "threads"_a,
        "S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T, h_t = scale S_t^T q_t, by value scale S_t q_t. q, k "
        "(B,S,NH,DK); v, h (B,S,NH,DV), but q as v and h as k by value; log_decay (B,S,NH,DK or 1); state and last "
        "(B,NH,DK,DV); kept (B,NH,decay_chunks,DK,DV), for the gradient.");
  m.def("decay_grad", &decay_grad, A("q"), A("k"), A("v"), A("log_decay"), A("kept"), A("dh"), A("d_last").none(),
        A("dq"), A("dk"), A("dv"), A("d_log_decay"), A("d_state").none(), nb::kw_only(), "scale"_a, "by_value"_a = false,
        "threads"_a);
  m.def("regression", &bound_regression, A("q"), A("k"), A("log_decay"), A("ridge"), A("state").none(), A("x"),
        A("last").none(), A("kept").none(), nb::kw_only(), "steps"_a, "threads"_a,
        "S_t = exp(log_decay_t) S_{t-1} + k_t k_t^T, x_t = (S_t + diag(ridge))^-1 q_t by conjugate gradients. q, k, x "
        "(B,S,NH,D); log_decay (B,S,NH,1); ridge (NH,D); state and last (B,NH,D,D); kept as that of `decay`.");
  m.def("delta", &delta, A("q"), A("k"), A("v"), A("log_decay"), A("beta"), A("state").none(), A("h"), A("last"),
        A("kept").none(), A("held").none(), nb::kw_only(), "threads"_a,
        "S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T with a_t = exp(log_decay_t), h_t = S_t^T q_t. q, "
        "k (B,S,NH,DK); v, h (B,S,NH,DV); log_decay, beta (B,S,NH); state and last (B,NH,DK,DV); for the gradient: kept "
        "(B,NH,decay_chunks,DK,DV) and held, as v.");
  m.def("delta_grad", &delta_grad, A("q"), A("k"), A("v"), A("log_decay"), A("beta"), A("kept"), A("held"), A("dh"),
        A("d_last").none(), A("dq"), A("dk"), A("dv"), A("d_log_decay"), A("d_beta"), A("d_state").none(),
        nb::kw_only(), "threads"_a);
  m.def("dplr", &dplr, A("q"), A("k"), A("v"), A("log_decay"), A("read"), A("removal"), A("state").none(), A("h"),
        A("last"), A("kept").none(), A("held").none(), nb::kw_only(), "threads"_a,
        "S_t = diag(exp(log_decay_t)) S_{t-1} - removal_t (S_{t-1}^T read_t)^T + k_t v_t^T, h_t = S_t^T q_t. q, k, "
        "log_decay, read, removal (B,S,NH,DK); v, h (B,S,NH,DV); state and last (B,NH,DK,DV); for the gradient: kept "
        "(B,NH,decay_chunks,DK,DV) and held, as v.");
  m.def("dplr_grad", &dplr_grad, A("q"), A("k"), A("v"), A("log_decay"), A("read"), A("removal"), A("kept"), A("held"),
        A("dh"), A("d_last").none(), A("dq"), A("dk"), A("dv"), A("d_log_decay"), A("d_read"), A("d_removal"),
        A("d_state").none(), nb::kw_only(), "threads"_a);
  m.def("scan", &scan, A("u"), A("dt"), A("A"), A("Bt"), A("Ct"), A("state").none(), A("y"), A("last"),
        A("kept").none(), nb::kw_only(), "threads"_a,
        "S_t[c] = exp(dt_t[c] A[c]) S_{t-1}[c] + dt_t[c] u_t[c] Bt_t, y_t[c] = S_t[c] . Ct_t. u, dt, y (B,S,C); A "
        "(C,N); Bt, Ct (B,S,N); state and last (B,C,N); kept (scan_kept,), for the gradient.");
  m.def("scan_grad", &scan_grad, A("u"), A("dt"), A("A"), A("Bt"), A("Ct"), A("kept"), A("dy"), A("d_last").none(),
        A("du"), A("ddt"), A("dA"), A("dBt"), A("dCt"), A("d_state").none(), nb::kw_only(), "threads"_a);
  m.def("scan_kept", &scan_kept, nb::kw_only(), "B"_a, "S"_a, "C"_a, "N"_a, "How many floats `scan` keeps.");
  m.def("decay_chunks", &decay_chunks, nb::kw_only(), "S"_a, "DK"_a,
        "How many states `decay`, `delta` and `dplr` keep per head.");
}
