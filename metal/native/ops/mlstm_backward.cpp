#include <algorithm>
#include <cmath>
#include <vector>

#include "gemm.h"
#include "mlstm.h"
#include "mlstm_chunk.h"
#include "pool.h"

namespace mlxhog {
namespace {

// u_t = dh_t / N_t and the gradients e_t of the denominator and r_t of the stabiliser M_t, on which
// h_t = num_t / N_t depends through eps alone: N_t = max(|den_t|, floor_t) + eps, in units of exp(M_t).
MLXHOG_CLONES void output_gradients(const float* h, const float* dh, Index ld, const float* den,
                                    Index den_stride, const float* floor, float eps, Index L, Index DV, float* u,
                                    float* e, float* r) {
  for (Index t = 0; t < L; ++t) {
    const float d = den[t * den_stride], magnitude = std::fabs(d);
    const bool by_floor = magnitude <= floor[t];
    const float scale = 1.0f / ((by_floor ? floor[t] : magnitude) + eps);
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (Index j = 0; j < DV; ++j) {
      const float gradient = dh[t * ld + j];
      dot += gradient * h[t * ld + j];
      u[t * DV + j] = gradient * scale;
    }
    e[t] = by_floor ? 0.0f : -std::copysign(scale, d) * dot;
    r[t] = -eps * scale * dot;
  }
}

// rows[r, :] = factor[r] * scale * (rows[r, :] + bias[r] * row) with bias null meaning 1
MLXHOG_CLONES void add_row_then_scale(const float* bias, const float* row, const float* factor, float scale,
                                      Index count, Index width, Index ld, float* rows) {
  for (Index r = 0; r < count; ++r) {
    const float total = factor[r] * scale, share = bias ? bias[r] : 1.0f;
#pragma omp simd
    for (Index j = 0; j < width; ++j) rows[r * ld + j] = total * (rows[r * ld + j] + share * row[j]);
  }
}

MLXHOG_CLONES float dot(const float* a, const float* b, Index count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < count; ++j) sum += a[j] * b[j];
  return sum;
}

MLXHOG_CLONES void scale_in_place(float* x, Index count, float scale) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) x[j] *= scale;
}

MLXHOG_CLONES void negative_sigmoids(const float* f, Index stride, Index L, float* out) {
#pragma omp simd
  for (Index t = 0; t < L; ++t) out[t] = sigmoid_f32(-f[t * stride]);
}

// r_t becomes the gradient of M_t = max(lf_t + M_t-1, i_t) with all that later stabilisers owe to it; dm is that of
// the stabiliser after the chunk, and becomes that of the one before it.
void chain_stabilisers(const std::vector<char>& opened, Index L, float* r, double* dm) {
  for (Index t = L - 1; t >= 0; --t) {
    r[t] = static_cast<float>(*dm += r[t]);
    if (opened[t]) *dm = 0;
  }
}

// <C, dC> + n . dn: the derivative of the loss by x if the state is multiplied by 1 + x.
double state_dot(const MlstmShape& s, const float* C, const float* n, const float* dC, const float* dn) {
  double sum = dot(n, dn, s.DK);
  for (Index d = 0; d < s.DK; ++d) sum += dot(C + d * s.DV, dC + d * s.DV, s.DV);
  return sum;
}

// The C before every chunk of the stretch that chunk c is the last of, computed anew from the one that is kept;
// matrices[j] is that of the stretch's chunk j + 1. `gates` and `keys` are scratch.
void rebuild_matrices(const MlstmShape& s, const MlstmInputs& in, const MlstmSaved& saved, Index b, Index head, Index c,
                      ChunkGates* gates, float* keys, float* matrices) {
  const Index state = b * s.NH + head, begin = c - c % s.stride, k_ld = s.NH * s.DK, v_ld = s.NH * s.DV;
  const float* C = saved.C + (state * s.matrices() + s.matrix(begin)) * s.DK * s.DV;
  for (Index j = begin; j < c; ++j, C = matrices, matrices += s.DK * s.DV) {
    const Index first = b * s.S + j * s.chunk, gate_at = first * s.NH + head;
    gates->compute(in.i + gate_at, in.f + gate_at, s.NH, s.chunk, saved.m[state * (s.chunks() + 1) + j]);
    next_matrix(*gates, in.k + first * k_ld + head * s.DK, k_ld, in.v + first * v_ld + head * s.DV, v_ld, s.chunk, s.DK,
                s.DV, C, matrices, keys);
  }
}

// All chunks of one head of one sequence, last chunk first. dC, dn and dm are the gradients of the state after
// the chunk (dC+, dn+ in the formulas) and become those of the state before it. In between, dC and dn are those at
// a fixed stabiliser: a state is the true one times exp(-m).
void backward_head(const MlstmShape& s, const MlstmInputs& in, const MlstmSaved& saved, const float* dh_all,
                   const MlstmGradients& out, Index b, Index head) {
  const Index L_max = std::min(s.chunk, s.S), NC = s.chunks(), DK = s.DK, DV = s.DV;
  const Index k_ld = s.NH * DK, v_ld = s.NH * DV, state = b * s.NH + head;
  const float scale = 1.0f / std::sqrt(static_cast<float>(DK));
  ChunkGates gates(L_max);
  std::vector<float> values_t(DV * L_max), keys_t(DK * L_max), queries(L_max * DK), keys(L_max * DK),
      A(L_max * L_max), X(L_max * L_max), u(L_max * DV), e(L_max), r(L_max), matrix_t(DV * DK), from_state(L_max),
      to_state(L_max), Z_rows(L_max), Z_columns(L_max), k_dk(L_max), slope(L_max), matrices((std::min(s.stride, std::max<Index>(NC, 1)) - 1) * DK * DV);
  float *dC = out.C + state * DK * DV, *dn = out.n + state * DK;
  const float *C_0 = saved.C + state * s.matrices() * DK * DV, *n_0 = saved.n + state * (NC + 1) * DK;
  double dm = out.m[state] - state_dot(s, C_0 + s.matrix(NC) * DK * DV, n_0 + NC * DK, dC, dn);
  for (Index c = NC - 1; c >= 0; --c) {
    const Index first = b * s.S + c * s.chunk, L = std::min(s.chunk, s.S - c * s.chunk);
    const Index k_at = first * k_ld + head * DK, v_at = first * v_ld + head * DV, gate_at = first * s.NH + head;
    const float *q = in.q + k_at, *k = in.k + k_at, *v = in.v + v_at;
    float *dq = out.q + k_at, *dk = out.k + k_at, *dv = out.v + v_at;
    if (c == NC - 1 || (c + 1) % s.stride == 0)
      rebuild_matrices(s, in, saved, b, head, c, &gates, keys.data(), matrices.data());
    const Index kept = s.matrix(c);
    const float* C = kept < 0 ? matrices.data() + (c % s.stride - 1) * DK * DV : C_0 + kept * DK * DV;
    const float* n = n_0 + c * DK;
    gates.compute(in.i + gate_at, in.f + gate_at, s.NH, L, saved.m[state * (NC + 1) + c]);
    output_gradients(saved.h + v_at, dh_all + v_at, v_ld, saved.den + gate_at, s.NH, gates.floor.data(), s.eps,
                     L, DV, u.data(), e.data(), r.data());
    chain_stabilisers(gates.opened, L, r.data(), &dm);
    scaled_rows(q, k_ld, L, DK, gates.w.data(), scale, queries.data());
    scaled_rows(k, k_ld, L, DK, gates.y.data(), 1.0f, keys.data());

    // A_tj = s E_tj (q_t . k_j),  X_tj = s E_tj (u_t . v_j + e_t)
    transpose(k, k_ld, L, DK, keys_t.data());
    transpose(v, v_ld, L, DV, values_t.data());
    lower_scores(q, k_ld, keys_t.data(), L, DK, A.data());
    lower_scores(u.data(), DV, values_t.data(), L, DV, X.data());
    weigh_two_scores(gates, L, scale, e.data(), A.data(), X.data(), Z_rows.data(), Z_columns.data());
    // dq_t = s w_t (C u_t + n e_t) + sum_j X_tj k_j
    transpose(C, DV, DK, DV, matrix_t.data());
    gemm(L, DK, DV, u.data(), DV, 1, matrix_t.data(), DK, dq, k_ld, false);
    add_row_then_scale(e.data(), n, gates.w.data(), scale, L, DK, k_ld, dq);
    row_dots(q, k_ld, dq, k_ld, L, DK, from_state.data());
    lower_times(X.data(), k, k_ld, L, DK, dq, k_ld);
    // dk_j = y_j (dC+ v_j + dn+) + sum_t X_tj q_t
    transpose(dC, DV, DK, DV, matrix_t.data());
    gemm(L, DK, DV, v, v_ld, 1, matrix_t.data(), DK, dk, k_ld, false);
    add_row_then_scale(nullptr, dn, gates.y.data(), 1.0f, L, DK, k_ld, dk);
    row_dots(k, k_ld, dk, k_ld, L, DK, to_state.data());
    lower_transposed_times(X.data(), q, k_ld, L, DK, dk, k_ld);
    // dv_j = y_j k_j dC+ + sum_t A_tj u_t
    gemm(L, DV, DK, keys.data(), DK, 1, dC, DV, dv, v_ld, false);
    lower_transposed_times(A.data(), u.data(), DV, L, DV, dv, v_ld);

    // di_j = k_j . dk_j.  df_t / sigmoid(-f_t) sums all that passes through step t: from keys before t to queries
    // from t on (Z below the diagonal), from keys before t to the state after the chunk, from the state before it
    // to queries from t on, and from state to state. The stabiliser's gradient goes to the gate that M_t came by.
    row_dots(k, k_ld, dk, k_ld, L, DK, k_dk.data());
    negative_sigmoids(in.f + gate_at, s.NH, L, slope.data());
    double passing = gates.decay * state_dot(s, C, n, dC, dn);
    for (Index t = 0; t < L; ++t) passing += from_state[t];
    for (Index t = 0; t < L; ++t) {
      out.i[gate_at + t * s.NH] = k_dk[t] + (gates.opened[t] ? r[t] : 0.0f);
      out.f[gate_at + t * s.NH] = static_cast<float>(slope[t] * (passing + (gates.opened[t] ? 0.0f : r[t])));
      passing += static_cast<double>(Z_columns[t]) + to_state[t] - Z_rows[t] - from_state[t];
    }

    // dC = decay dC+ + sum_t s w_t q_t u_t^T,  dn = decay dn+ + sum_t s w_t e_t q_t
    scale_in_place(dC, DK * DV, gates.decay);
    scale_in_place(dn, DK, gates.decay);
    gemm(DK, DV, L, queries.data(), 1, DK, u.data(), DV, dC, DV, true);
    gemm(DK, 1, L, queries.data(), 1, DK, e.data(), 1, dn, 1, true);
  }
  out.m[state] = static_cast<float>(dm + state_dot(s, C_0, n_0, dC, dn));
}

}  // namespace

void mlstm_backward(const MlstmShape& s, const MlstmInputs& in, const MlstmSaved& saved, const float* dh,
                    const MlstmGradients& out, int threads) {
  parallel_for(s.B * s.NH, threads,
               [&](Index task) { backward_head(s, in, saved, dh, out, task / s.NH, task % s.NH); });
}

}  // namespace mlxhog
