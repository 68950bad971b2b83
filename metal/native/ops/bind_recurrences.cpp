// Python names of the recurrences whose state is a matrix, other than the mLSTM cell.
#include <algorithm>
#include <string>

#include "decay.h"
#include "delta.h"
#include "dplr.h"
#include "regression.h"
#include "scan.h"
#include "shapes.h"

namespace mlxhog {
namespace {

DecayShape decay_shape(Sizes& sizes, float scale, bool by_value) {
  const DecayShape s{sizes["B"], sizes["S"], sizes["NH"], sizes["DK"], sizes["DV"], sizes["A"], scale, by_value};
  sizes.expect({{"A", s.A == 1 ? 1 : s.DK},
                {"DQ", by_value ? s.DV : s.DK},
                {"DH", by_value ? s.DK : s.DV},
                {"NC", s.chunks()}});
  return s;
}

Index decay_chunks(Index S, Index DK) {
  if (S < 0 || DK < 1) throw nb::value_error("S must be at least 0 and DK at least 1");
  DecayShape s{};
  s.S = S, s.DK = DK;
  return s.chunks();
}

DeltaShape delta_shape(Sizes& sizes) {
  const auto s = sizes.as<DeltaShape>("B", "S", "NH", "DK", "DV");
  sizes.expect({{"NC", s.chunks()}});
  return s;
}

ScanShape scan_shape(Sizes& sizes) {
  const auto s = sizes.as<ScanShape>("B", "S", "C", "N");
  sizes.expect({{"KEPT", s.kept()}});
  return s;
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
  const std::string kept = ", kept: B NH NC DK DV", states = ", state: B NH DK DV";
  const std::string decay = "q: B S NH DQ, k: B S NH DK, v: B S NH DV, log_decay: B S NH A";
  def(m, "decay", decay + states + ", h: B S NH DH, last: B NH DK DV" + kept,
      "S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T, h_t = scale S_t^T q_t. A is DK or 1. By value, h_t = scale "
      "S_t q_t, q is as wide as v and h as k. kept, for the gradient, has NC = decay_chunks.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats log_decay, MaybeFloats state, Result h, Result last,
         MaybeResult kept, float scale, bool by_value, int threads) {
        const DecayShape s = decay_shape(sizes, scale, by_value);
        decay_forward(s, {q, k, v, log_decay, state}, h, last, kept, threads);
      }, "scale"_a, "by_value"_a = false);
  def(m, "decay_grad",
      decay + kept + ", dh: B S NH DH, d_last: B NH DK DV, dq: B S NH DQ, dk: B S NH DK, dv: B S NH DV, "
                     "d_log_decay: B S NH A, d_state: B NH DK DV",
      "",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats log_decay, Floats kept, Floats dh, MaybeFloats d_last,
         Result dq, Result dk, Result dv, Result d_log_decay, MaybeResult d_state, float scale, bool by_value,
         int threads) {
        const DecayShape s = decay_shape(sizes, scale, by_value);
        decay_backward(s, {q, k, v, log_decay, nullptr}, kept, dh, d_last, {dq, dk, dv, d_log_decay, d_state},
                       threads);
      }, "scale"_a, "by_value"_a = false);
  def(m, "regression",
      "q k: B S NH D, log_decay: B S NH 1, ridge: NH D, state: B NH D D, x: B S NH D, last: B NH D D, "
      "kept: B NH NC D D",
      "S_t = exp(log_decay_t) S_{t-1} + k_t k_t^T, x_t = (S_t + diag(ridge))^-1 q_t by conjugate gradients; kept as "
      "that of `decay`.",
      [](Sizes& sizes, Floats q, Floats k, Floats log_decay, Floats ridge, MaybeFloats state, Result x,
         MaybeResult last, MaybeResult kept, Index steps, int threads) {
        const Index D = sizes["D"];
        const DecayShape s{sizes["B"], sizes["S"], sizes["NH"], D, D, 1, 1.0f, false};
        sizes.expect({{"NC", s.chunks()}});
        regression(s, {q, k, log_decay, ridge, state}, steps, x, last, kept, threads);
      }, "steps"_a);
  const std::string delta = "q k: B S NH DK, v: B S NH DV, log_decay beta: B S NH";
  def(m, "delta", delta + states + ", h: B S NH DV, last: B NH DK DV" + kept + ", held: B S NH DV",
      "S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T with a_t = exp(log_decay_t), h_t = S_t^T q_t. kept, "
      "with NC = decay_chunks, and held are for the gradient.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats log_decay, Floats beta, MaybeFloats state, Result h,
         Result last, MaybeResult kept, MaybeResult held, int threads) {
        delta_forward(delta_shape(sizes), {q, k, v, log_decay, beta, state}, h, last, kept, held, threads);
      });
  def(m, "delta_grad",
      delta + kept + ", held dh: B S NH DV, d_last: B NH DK DV, dq dk: B S NH DK, dv: B S NH DV, "
                     "d_log_decay d_beta: B S NH, d_state: B NH DK DV",
      "",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats log_decay, Floats beta, Floats kept, Floats held,
         Floats dh, MaybeFloats d_last, Result dq, Result dk, Result dv, Result d_log_decay, Result d_beta,
         MaybeResult d_state, int threads) {
        delta_backward(delta_shape(sizes), {q, k, v, log_decay, beta, nullptr}, kept, held, dh, d_last,
                       {dq, dk, dv, d_log_decay, d_beta, d_state}, threads);
      });
  const std::string dplr = "q k: B S NH DK, v: B S NH DV, log_decay read removal: B S NH DK";
  def(m, "dplr", dplr + states + ", h: B S NH DV, last: B NH DK DV" + kept + ", held: B S NH DV",
      "S_t = diag(exp(log_decay_t)) S_{t-1} - removal_t (S_{t-1}^T read_t)^T + k_t v_t^T, h_t = S_t^T q_t; kept and "
      "held as those of `delta`.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats log_decay, Floats read, Floats removal, MaybeFloats state,
         Result h, Result last, MaybeResult kept, MaybeResult held, int threads) {
        dplr_forward(delta_shape(sizes), {q, k, v, log_decay, read, removal, state}, h, last, kept, held, threads);
      });
  def(m, "dplr_grad",
      dplr + kept + ", held dh: B S NH DV, d_last: B NH DK DV, dq dk: B S NH DK, dv: B S NH DV, "
                    "d_log_decay d_read d_removal: B S NH DK, d_state: B NH DK DV",
      "",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats log_decay, Floats read, Floats removal, Floats kept,
         Floats held, Floats dh, MaybeFloats d_last, Result dq, Result dk, Result dv, Result d_log_decay,
         Result d_read, Result d_removal, MaybeResult d_state, int threads) {
        dplr_backward(delta_shape(sizes), {q, k, v, log_decay, read, removal, nullptr}, kept, held, dh, d_last,
                      {dq, dk, dv, d_log_decay, d_read, d_removal, d_state}, threads);
      });
  const std::string scan = "u dt: B S C, A: C N, Bt Ct: B S N";
  def(m, "scan", scan + ", state: B C N, y: B S C, last: B C N, kept: KEPT",
      "S_t[c] = exp(dt_t[c] A[c]) S_{t-1}[c] + dt_t[c] u_t[c] Bt_t, y_t[c] = S_t[c] . Ct_t. kept, for the gradient, "
      "has KEPT = scan_kept.",
      [](Sizes& sizes, Floats u, Floats dt, Floats A, Floats Bt, Floats Ct, MaybeFloats state, Result y, Result last,
         MaybeResult kept, int threads) {
        scan_forward(scan_shape(sizes), {u, dt, A, Bt, Ct, state}, y, last, kept, threads);
      });
  def(m, "scan_grad",
      scan + ", kept: KEPT, dy: B S C, d_last: B C N, du ddt: B S C, dA: C N, dBt dCt: B S N, d_state: B C N", "",
      [](Sizes& sizes, Floats u, Floats dt, Floats A, Floats Bt, Floats Ct, Floats kept, Floats dy,
         MaybeFloats d_last, Result du, Result ddt, Result dA, Result dBt, Result dCt, MaybeResult d_state,
         int threads) {
        scan_backward(scan_shape(sizes), {u, dt, A, Bt, Ct, nullptr}, kept, dy, d_last,
                      {du, ddt, dA, dBt, dCt, d_state}, threads);
      });
  m.def("scan_kept", &scan_kept, nb::kw_only(), "B"_a, "S"_a, "C"_a, "N"_a, "How many floats `scan` keeps.");
  m.def("decay_chunks", &decay_chunks, nb::kw_only(), "S"_a, "DK"_a,
        "How many states `decay`, `delta` and `dplr` keep per head.");
}
