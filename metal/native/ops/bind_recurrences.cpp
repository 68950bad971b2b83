// Python names of the recurrences other than the mLSTM cell.
#include <algorithm>
#include <cstdint>
#include <string>

#include "recurrence.h"
#include "regression.h"
#include "scan.h"
#include "shapes.h"
#include "slstm.h"

namespace mlxhog {
namespace {

RecurrenceShape recurrence_shape(Sizes& sizes, const float* beta, const float* read, const float* removal, float scale,
                                 bool by_value) {
  RecurrenceShape s{sizes["B"], sizes["S"], sizes["NH"], sizes["DK"], sizes["DV"], sizes["A"], Removal::none, scale,
                    by_value};
  if (!read != !removal || (beta && read) || (by_value && (beta || read)))
    throw nb::value_error("recurrence: give beta, or read and removal, or neither and perhaps by_value");
  if (beta) s.removal = Removal::own_key;
  if (read) s.removal = Removal::free;
  sizes.expect({{"A", s.A == 1 && !read ? 1 : s.DK},
                {"DQ", by_value ? s.DV : s.DK},
                {"DH", by_value ? s.DK : s.DV},
                {"NC", s.chunks()}});
  return s;
}

Index recurrence_chunks(Index S, Index DK) {
  if (S < 0 || DK < 1) throw nb::value_error("S must be at least 0 and DK at least 1");
  RecurrenceShape s{};
  s.S = S, s.DK = DK;
  return s.chunks();
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

SlstmShape cell_shape(const Sizes& sizes) {
  sizes.expect_positive({"B", "S", "NH", "DH"});
  return sizes.as<SlstmShape>("B", "S", "NH", "DH");
}

}  // namespace
}  // namespace mlxhog

void bind_recurrences(nb::module_& m) {
  using namespace nb::literals;
  using namespace mlxhog;
  const std::string inputs =
      "q: B S NH DQ, k: B S NH DK, v: B S NH DV, log_decay: B S NH A, beta: B S NH, read removal: B S NH DK";
  const std::string kept = ", kept: B NH NC DK DV, held: B S NH DV";
  def(m, "recurrence", inputs + ", state: B NH DK DV, h: B S NH DH, last: B NH DK DV" + kept,
      "S_t = D S_{t-1} + k_t v_t^T, h_t = scale S_t^T q_t with D = diag(exp(log_decay_t)), A = DK or 1. With beta the "
      "delta rule: beta_t k_t (v_t - S_{t-1}^T D k_t)^T in place of k_t v_t^T. With read and removal, less "
      "removal_t (S_{t-1}^T read_t)^T. By value, h_t = scale S_t q_t, q is as wide as v and h as k. kept, with NC = "
      "recurrence_chunks, and held, what was read, are for the gradient.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats log_decay, MaybeFloats beta, MaybeFloats read,
         MaybeFloats removal, MaybeFloats state, Result h, Result last, MaybeResult kept, MaybeResult held, float scale,
         bool by_value, int threads) {
        const RecurrenceShape s = recurrence_shape(sizes, beta, read, removal, scale, by_value);
        recurrence_forward(s, {q, k, v, log_decay, beta, read, removal, state}, h, last, kept, held, threads);
      }, "scale"_a = 1.0f, "by_value"_a = false);
  def(m, "recurrence_grad",
      inputs + kept + ", dh: B S NH DH, d_last: B NH DK DV, dq: B S NH DQ, dk: B S NH DK, dv: B S NH DV, "
                      "d_log_decay: B S NH A, d_beta: B S NH, d_read d_removal: B S NH DK, d_state: B NH DK DV",
      "",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats log_decay, MaybeFloats beta, MaybeFloats read,
         MaybeFloats removal, Floats kept, MaybeFloats held, Floats dh, MaybeFloats d_last, Result dq, Result dk,
         Result dv, Result d_log_decay, MaybeResult d_beta, MaybeResult d_read, MaybeResult d_removal,
         MaybeResult d_state, float scale, bool by_value, int threads) {
        const RecurrenceShape s = recurrence_shape(sizes, beta, read, removal, scale, by_value);
        if (s.removal != Removal::none && !held) throw nb::value_error("recurrence_grad: a removal has held values");
        if (!beta != !d_beta || !read != !d_read || !read != !d_removal)
          throw nb::value_error("recurrence_grad: give a gradient for each input, and for no other");
        recurrence_backward(s, {q, k, v, log_decay, beta, read, removal, nullptr}, kept, held, dh, d_last,
                            {dq, dk, dv, d_log_decay, d_beta, d_read, d_removal, d_state}, threads);
      }, "scale"_a = 1.0f, "by_value"_a = false);
  def(m, "regression",
      "q k: B S NH D, log_decay: B S NH 1, ridge: NH D, state: B NH D D, x: B S NH D, last: B NH D D, "
      "kept: B NH NC D D",
      "S_t = exp(log_decay_t) S_{t-1} + k_t k_t^T, x_t = (S_t + diag(ridge))^-1 q_t by conjugate gradients; kept as "
      "that of `recurrence`.",
      [](Sizes& sizes, Floats q, Floats k, Floats log_decay, Floats ridge, MaybeFloats state, Result x,
         MaybeResult last, MaybeResult kept, Index steps, int threads) {
        const Index D = sizes["D"];
        const RecurrenceShape s{sizes["B"], sizes["S"], sizes["NH"], D, D, 1};
        sizes.expect({{"NC", s.chunks()}});
        regression(s, {q, k, log_decay, ridge, state}, steps, x, last, kept, threads);
      }, "steps"_a);
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
  m.def("recurrence_chunks", &recurrence_chunks, nb::kw_only(), "S"_a, "DK"_a,
        "How many states `recurrence` keeps per head.");
  m.attr("SLSTM_TAPE") = static_cast<Index>(kSlstmTape);
  const std::string tape = "tape: B S NH " + std::to_string(kSlstmTape) + " DH, ";
  def(m, "slstm",
      "i f z o: B S NH DH, R: NH 4*DH DH, b: 4*NH*DH, starts: B S, h: B S NH DH, " + tape +
      "h_state c n m: B NH DH",
      "sLSTM cell. starts uint8 or None; tape for slstm_grad, or None,; h_state, c, n, m hold "
      "the initial state on entry and the final one on return.",
      [](Sizes& sizes, Floats i, Floats f, Floats z, Floats o, Floats R, Floats b, Maybe<const std::uint8_t> starts,
         Result h, MaybeResult tape, Result h_state, Result c, Result n, Result m, int threads) {
        slstm_forward(cell_shape(sizes), {i, f, z, o, R, b, starts}, {h_state, c, n, m}, h, tape, threads);
      });
  def(m, "slstm_grad",
      "R: NH 4*DH DH, starts: B S, h0 c0 n0: B NH DH, h: B S NH DH, " + tape +
      "dh di df dz do: B S NH DH, dR: NH 4*DH DH, db: 4*NH*DH, dh_state dc dn dm: B NH DH",
      "Exact gradients of slstm; dh_state, dc, dn, dm hold the final state's gradient on entry and the initial "
      "state's on return.",
      [](Sizes& sizes, Floats R, Maybe<const std::uint8_t> starts, Floats h0, Floats c0, Floats n0, Floats h,
         Floats tape, Floats dh, Result di, Result df, Result dz, Result d_o, Result dR, Result db, Result dh_state,
         Result dc, Result dn, Result dm, int threads) {
        slstm_backward(cell_shape(sizes), {R, h0, c0, n0, h, tape, starts}, dh,
                       {di, df, dz, d_o, dR, db, {dh_state, dc, dn, dm}}, threads);
      });
}
