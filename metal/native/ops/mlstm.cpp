// The mLSTM cell, chunkwise (xLSTM paper arXiv:2405.04517, equations in models/layers/xlstm.py).
//
// The gates i and f are given after their soft cap. Chunk states are kept instead of S x S matrices: of n and m those
// before each of NC = ceil(S / chunk) chunks, the last of which may be partial, and the final one; of C those before
// every `stride`-th chunk, and the final one. Where `starts` (B, S) is not 0 a document starts: the state before that
// position counts as zero, C, n and m. It is left out of products, not multiplied by 0, and so are scores. Work is split
// over B * NH.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gemm.h"
#include "rows.h"
#include "shapes.h"

namespace mlxhog {
namespace {

struct MlstmShape {
  Index B, S, NH, DK, DV, chunk, stride;
  float eps;

  Index chunks() const { return (S + chunk - 1) / chunk; }
  Index matrices() const { return (chunks() + stride - 1) / stride + 1; }
  // Where the C before chunk c is kept; -1 for one that is not.
  Index matrix(Index c) const { return c == chunks() ? matrices() - 1 : c % stride ? -1 : c / stride; }
};

struct MlstmInputs {
  const float *q, *k, *v, *i, *f;
  const std::uint8_t* starts;  // null: no document starts

  const std::uint8_t* starts_from(Index position) const { return starts ? starts + position : nullptr; }
};

// Entry 0 of the states holds the initial state on entry; the rest is written, as are h and the signed denominators
// `den`, and saved for the backward pass.
template <class Float>
struct MlstmArrays {
  Float *h, *den, *C, *n, *m;
};
using MlstmResults = MlstmArrays<float>;
using MlstmSaved = MlstmArrays<const float>;

// Gradients of the inputs and, in C (B, NH, DK, DV), n (B, NH, DK) and m (B, NH), of the state: the final
// state's gradient on entry, the initial state's on return.
struct MlstmGradients {
  float *q, *k, *v, *i, *f, *C, *n, *m;
};

// -- the gates and scores of a chunk, for both passes
//
// With b_t the running sum of log sigmoid(f), c_j = i_j - b_j and top_t = max(m, c_1 .. c_t), the stabilizer is
// M_t = b_t + top_t and every weight is an exponential of a difference:
//   E_tj = exp(c_j - top_t)   w_t = exp(m - top_t)   y_j = exp(b_L + c_j - m')   m' = b_L + top_L.
// Where a document starts b and top begin anew, with m = 0.
struct ChunkGates {
  // c and top as unevaluated float sums hi + lo: their difference keeps its digits where b is large.
  std::vector<float> c_hi, c_lo, top_hi, top_lo;
  std::vector<float> w, y, floor;  // floor_t = exp(-M_t), the least denominator
  std::vector<char> opened;        // whether c_t alone is top_t, so that M_t = i_t
  std::vector<Index> first;        // the first position of t's document that is in the chunk
  Index until = 0, from = 0;       // w is of the positions before `until`, y of those from `from` on
  float decay = 0;                 // exp(b_L + m - m'), the weight of the old state in the new one
  float m_next = 0;

  explicit ChunkGates(Index chunk)
      : c_hi(chunk), c_lo(chunk), top_hi(chunk), top_lo(chunk), w(chunk), y(chunk), floor(chunk), opened(chunk),
        first(chunk) {}

  // i, f: the head's first value of the chunk, `stride` floats between steps.
  void compute(const float* i, const float* f, const std::uint8_t* starts, Index stride, Index L, float m);

  bool starts(Index t) const { return t >= until && first[t] == t; }  // a document
  bool carries(Index L) const { return until == L; }                  // the old state reaches the new one
};

constexpr Index kBand = 14;  // the rows of a tile of `gemm`

MLXHOG_CLONES void log_sigmoids(const float* f, Index stride, Index L, float* out) {
#pragma omp simd
  for (Index t = 0; t < L; ++t) out[t] = log_sigmoid_f32(f[t * stride]);
}

// E_tj; the argument is <= 0 for j <= t, and capped so that the entries to be masked stay finite.
MLXHOG_INLINE float decay_weight(const float* c_hi, const float* c_lo, Index j, float top_hi, float top_lo) {
  const float difference = (c_hi[j] - top_hi) + (c_lo[j] - top_lo);
  return exp_f32(difference > 0.0f ? 0.0f : difference);
}

MLXHOG_CLONES float weigh_row(const float* c_hi, const float* c_lo, float top_hi, float top_lo, Index first, Index t,
                              Index L, float scale, float* S) {
  float sum = 0;
  std::fill(S, S + first, 0.0f);
#pragma omp simd reduction(+ : sum)
  for (Index j = first; j <= t; ++j) {
    S[j] *= scale * decay_weight(c_hi, c_lo, j, top_hi, top_lo);
    sum += S[j];
  }
  std::fill(S + t + 1, S + L, 0.0f);
  return sum;
}

MLXHOG_CLONES float weigh_two_rows(const float* c_hi, const float* c_lo, float top_hi, float top_lo, Index first,
                                   Index t, Index L, float scale, float e, float* S, float* P, float* column_sums) {
  float sum = 0;
  for (float* row : {S, P}) std::fill(row, row + first, 0.0f);
#pragma omp simd reduction(+ : sum)
  for (Index j = first; j < t; ++j) {
    const float weight = scale * decay_weight(c_hi, c_lo, j, top_hi, top_lo);
    P[j] = (P[j] + e) * weight;
    const float Z = S[j] * P[j];
    S[j] *= weight;
    sum += Z;
    column_sums[j] += Z;
  }
  const float weight = scale * decay_weight(c_hi, c_lo, t, top_hi, top_lo);
  P[t] = (P[t] + e) * weight;
  S[t] *= weight;
  std::fill(S + t + 1, S + L, 0.0f);
  std::fill(P + t + 1, P + L, 0.0f);
  return sum;
}

void ChunkGates::compute(const float* i, const float* f, const std::uint8_t* starts, Index stride, Index L, float m) {
  log_sigmoids(f, stride, L, w.data());
  double b = 0, top = m;
  until = L, from = 0;
  for (Index t = 0; t < L; ++t) {
    if (starts && starts[t]) b = top = 0, until = std::min(until, t), from = t;
    first[t] = from;
    b += w[t];
    const double c = i[t * stride] - b;
    opened[t] = !(c <= top);
    // Not std::max, which would lose a NaN.
    top = opened[t] ? c : top;
    c_hi[t] = static_cast<float>(c);
    c_lo[t] = std::isinf(c_hi[t]) ? 0.0f : static_cast<float>(c - c_hi[t]);  // a gate may be -inf
    top_hi[t] = static_cast<float>(top);
    top_lo[t] = static_cast<float>(top - top_hi[t]);
    floor[t] = static_cast<float>(-(b + top));
    w[t] = static_cast<float>(m - top);
  }
  m_next = static_cast<float>(b + top);
  for (Index t = from; t < L; ++t)
    y[t] = static_cast<float>((b - m_next) + (static_cast<double>(c_hi[t]) + c_lo[t]));
  decay = carries(L) ? std::exp(static_cast<float>(b + m - m_next)) : 0.0f;
  exponentials(until, w.data());
  exponentials(L - from, y.data() + from);
  exponentials(L, floor.data());
}

// Products with lower triangular matrices (L, L), computed in bands of rows so that most of what is above the diagonal
// is left out. Above the diagonal A has to be 0 within a band, and scores are unspecified.
// S[t, j] = sum_d q[t, d] k_t[d, j]
void lower_scores(const float* q, Index q_ld, const float* k_t, Index L, Index DK, float* S) {
  for (Index t = 0; t < L; t += kBand) {
    const Index rows = std::min(kBand, L - t);
    gemm(rows, t + rows, DK, q + t * q_ld, q_ld, 1, k_t, L, S + t * L, L, false);
  }
}

// out[t, :] += sum_{j <= t} A[t, j] rows[j, :]
void lower_times(const float* A, const float* rows, Index ld, Index L, Index width, float* out, Index out_ld) {
  for (Index t = 0; t < L; t += kBand) {
    const Index count = std::min(kBand, L - t);
    gemm(count, width, t + count, A + t * L, L, 1, rows, ld, out + t * out_ld, out_ld, true);
  }
}

// out[j, :] += sum_{t >= j} A[t, j] rows[t, :]
void lower_transposed_times(const float* A, const float* rows, Index ld, Index L, Index width, float* out,
                            Index out_ld) {
  for (Index j = 0; j < L; j += kBand) {
    const Index count = std::min(kBand, L - j);
    gemm(count, width, L - j, A + j * L + j, 1, L, rows + j * ld, ld, out + j * out_ld, out_ld, true);
  }
}

// The scores S (L, L) become A_tj = scale * E_tj S_tj for j <= t of its document, 0 for others;
// row_sums[t * stride] += sum_j A_tj.
void weigh_scores(const ChunkGates& g, Index L, float scale, float* S, float* row_sums, Index stride) {
  for (Index t = 0; t < L; ++t)
    row_sums[t * stride] +=
        weigh_row(g.c_hi.data(), g.c_lo.data(), g.top_hi[t], g.top_lo[t], g.first[t], t, L, scale, S + t * L);
}

// For the backward pass: scores S and P become A_tj = scale * E_tj S_tj and X_tj = scale * E_tj (P_tj + e_t), again
// 0 for j > t. Of Z_tj = S_tj X_tj it sums the part below the diagonal, over rows and over columns.
void weigh_two_scores(const ChunkGates& g, Index L, float scale, const float* e, float* S, float* P, float* row_sums,
                      float* column_sums) {
  std::fill(column_sums, column_sums + L, 0.0f);
  for (Index t = 0; t < L; ++t)
    row_sums[t] = weigh_two_rows(g.c_hi.data(), g.c_lo.data(), g.top_hi[t], g.top_lo[t], g.first[t], t, L, scale, e[t],
                                 S + t * L, P + t * L, column_sums);
}

// out[r, :] = factor[r] * scale * rows[r, :] (factor may be null: 1); out is packed, rows are `ld` apart.
MLXHOG_CLONES void scaled_rows(const float* rows, Index ld, Index count, Index width, const float* factor,
                               float scale, float* out) {
  for (Index r = 0; r < count; ++r) {
    const float total = factor ? factor[r] * scale : scale;
#pragma omp simd
    for (Index j = 0; j < width; ++j) out[r * width + j] = total * rows[r * ld + j];
  }
}

// C_next = decay C + sum_j y_j k_j^T v_j for one chunk's keys (L, DK) and values (L, DV). `keys` receives y_j k_j.
void next_matrix(const ChunkGates& g, const float* k, Index k_ld, const float* v, Index v_ld, Index L, Index DK,
                 Index DV, const float* C, float* C_next, float* keys) {
  const Index from = g.from, count = L - from;
  scaled_rows(k + from * k_ld, k_ld, count, DK, g.y.data() + from, 1.0f, keys + from * DK);
  if (g.carries(L)) scaled_rows(C, DV, DK, DV, nullptr, g.decay, C_next);
  gemm(DK, DV, count, keys + from * DK, 1, DK, v + from * v_ld, v_ld, C_next, DV, g.carries(L));
}

void clear_rows(float* rows, Index ld, Index first, Index last, Index width) {
  for (Index t = first; t < last; ++t) std::fill_n(rows + t * ld, width, 0.0f);
}

// out[r] = sum_j a[r, j] * b[r, j]
void row_dots(const float* a, const float* b, Index ld, Index count, Index width, float* out) {
  for (Index r = 0; r < count; ++r) out[r] = dot(width, a + r * ld, b + r * ld);
}

// -- forward

// h_t = num_t / (max(|den_t|, floor_t) + eps), num in place.
MLXHOG_CLONES void normalize(const float* den, Index den_stride, const float* floor, float eps, Index L,
                             Index DV, Index ld, float* h) {
  for (Index t = 0; t < L; ++t) {
    const float magnitude = std::fabs(den[t * den_stride]);
    const float scale = 1.0f / ((magnitude <= floor[t] ? floor[t] : magnitude) + eps);
#pragma omp simd
    for (Index d = 0; d < DV; ++d) h[t * ld + d] *= scale;
  }
}

// All chunks of one head of one sequence.
void forward_head(const MlstmShape& s, const MlstmInputs& in, const MlstmResults& out, Index b, Index head) {
  const Index L_max = std::min(s.chunk, s.S), NC = s.chunks(), DK = s.DK, DV = s.DV;
  const Index k_ld = s.NH * DK, v_ld = s.NH * DV;
  const float scale = 1.0f / std::sqrt(static_cast<float>(DK));
  ChunkGates gates(L_max);
  std::vector<float> keys_t(DK * L_max), queries(L_max * DK), keys(L_max * DK), A(L_max * L_max);
  float* const matrices = out.C + (b * s.NH + head) * s.matrices() * DK * DV;
  std::vector<float> between[2];  // matrices that are not kept, in turns
  if (s.stride > 1)
    for (auto& matrix : between) matrix.resize(DK * DV);
  const float* C = matrices;
  float* n = out.n + (b * s.NH + head) * (NC + 1) * DK;
  float* m = out.m + (b * s.NH + head) * (NC + 1);
  for (Index c = 0; c < NC; ++c, n += DK, ++m) {
    const Index first = b * s.S + c * s.chunk, L = std::min(s.chunk, s.S - c * s.chunk);
    const float *q = in.q + first * k_ld + head * DK, *k = in.k + first * k_ld + head * DK;
    const float* v = in.v + first * v_ld + head * DV;
    float *h = out.h + first * v_ld + head * DV, *den = out.den + first * s.NH + head;
    gates.compute(in.i + first * s.NH + head, in.f + first * s.NH + head, in.starts_from(first), s.NH, L, m[0]);
    const Index until = gates.until;
    // num = s w_t q_t C + A V,  den = s w_t q_t . n + sum_j A_tj,  A_tj = s (q_t . k_j) E_tj
    scaled_rows(q, k_ld, until, DK, gates.w.data(), scale, queries.data());
    gemm(until, DV, DK, queries.data(), DK, 1, C, DV, h, v_ld, false);
    gemm(until, 1, DK, queries.data(), DK, 1, n, 1, den, s.NH, false);
    clear_rows(h, v_ld, until, L, DV);
    clear_rows(den, s.NH, until, L, 1);
    transpose(k, k_ld, L, DK, keys_t.data());
    lower_scores(q, k_ld, keys_t.data(), L, DK, A.data());
    weigh_scores(gates, L, scale, A.data(), den, s.NH);
    lower_times(A.data(), v, v_ld, L, DV, h, v_ld);
    normalize(den, s.NH, gates.floor.data(), s.eps, L, DV, v_ld, h);
    // C' = decay C + sum_j y_j k_j^T v_j,  n' = decay n + sum_j y_j k_j
    const Index kept = s.matrix(c + 1);
    float* C_next = kept < 0 ? between[c % 2].data() : matrices + kept * DK * DV;
    next_matrix(gates, k, k_ld, v, v_ld, L, DK, DV, C, C_next, keys.data());
    C = C_next;
    float* n_next = n + DK;
    for (Index d = 0; d < DK; ++d) {
      float sum = gates.carries(L) ? gates.decay * n[d] : 0.0f;
      for (Index t = gates.from; t < L; ++t) sum += keys[t * DK + d];
      n_next[d] = sum;
    }
    m[1] = gates.m_next;
  }
}

// -- backward

// u_t = dh_t / N_t and the gradients e_t of the denominator and r_t of the stabilizer M_t, on which
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

MLXHOG_CLONES void negative_sigmoids(const float* f, Index stride, Index L, float* out) {
#pragma omp simd
  for (Index t = 0; t < L; ++t) out[t] = sigmoid_f32(-f[t * stride]);
}

// r_t becomes the gradient of M_t = max(lf_t + M_t-1, i_t) with all that later stabilizers owe to it; dm is that of
// the stabilizer after the chunk, and becomes that of the one before it.
void chain_stabilizers(const ChunkGates& g, Index L, float* r, double* dm) {
  for (Index t = L - 1; t >= 0; --t) {
    r[t] = static_cast<float>(*dm += r[t]);
    if (g.opened[t] || g.starts(t)) *dm = 0;
  }
}

// <C, dC> + n . dn: the derivative of the loss by x if the state is multiplied by 1 + x.
double state_dot(const MlstmShape& s, const float* C, const float* n, const float* dC, const float* dn) {
  double sum = dot(s.DK, n, dn);
  for (Index d = 0; d < s.DK; ++d) sum += dot(s.DV, C + d * s.DV, dC + d * s.DV);
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
    gates->compute(in.i + gate_at, in.f + gate_at, in.starts_from(first), s.NH, s.chunk,
                   saved.m[state * (s.chunks() + 1) + j]);
    next_matrix(*gates, in.k + first * k_ld + head * s.DK, k_ld, in.v + first * v_ld + head * s.DV, v_ld, s.chunk, s.DK,
                s.DV, C, matrices, keys);
  }
}

// All chunks of one head of one sequence, last chunk first. dC, dn and dm are the gradients of the state after
// the chunk (dC+, dn+ in the formulas) and become those of the state before it. In between, dC and dn are those at
// a fixed stabilizer: a state is the true one times exp(-m).
void backward_head(const MlstmShape& s, const MlstmInputs& in, const MlstmSaved& saved, const float* dh_all,
                   const MlstmGradients& out, Index b, Index head) {
  const Index L_max = std::min(s.chunk, s.S), NC = s.chunks(), DK = s.DK, DV = s.DV;
  const Index k_ld = s.NH * DK, v_ld = s.NH * DV, state = b * s.NH + head;
  const float scale = 1.0f / std::sqrt(static_cast<float>(DK));
  ChunkGates gates(L_max);
  std::vector<float> values_t(DV * L_max), keys_t(DK * L_max), queries(L_max * DK), keys(L_max * DK),
      A(L_max * L_max), X(L_max * L_max), u(L_max * DV), e(L_max), r(L_max), matrix_t(DV * DK), from_state(L_max),
      to_state(L_max), Z_rows(L_max), Z_columns(L_max), k_dk(L_max), slope(L_max),
      matrices((std::min(s.stride, std::max<Index>(NC, 1)) - 1) * DK * DV);
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
    gates.compute(in.i + gate_at, in.f + gate_at, in.starts_from(first), s.NH, L, saved.m[state * (NC + 1) + c]);
    const Index until = gates.until, from = gates.from;
    output_gradients(saved.h + v_at, dh_all + v_at, v_ld, saved.den + gate_at, s.NH, gates.floor.data(), s.eps,
                     L, DV, u.data(), e.data(), r.data());
    chain_stabilizers(gates, L, r.data(), &dm);
    scaled_rows(q, k_ld, until, DK, gates.w.data(), scale, queries.data());
    scaled_rows(k + from * k_ld, k_ld, L - from, DK, gates.y.data() + from, 1.0f, keys.data());

    // A_tj = s E_tj (q_t . k_j),  X_tj = s E_tj (u_t . v_j + e_t)
    transpose(k, k_ld, L, DK, keys_t.data());
    transpose(v, v_ld, L, DV, values_t.data());
    lower_scores(q, k_ld, keys_t.data(), L, DK, A.data());
    lower_scores(u.data(), DV, values_t.data(), L, DV, X.data());
    weigh_two_scores(gates, L, scale, e.data(), A.data(), X.data(), Z_rows.data(), Z_columns.data());
    // dq_t = s w_t (C u_t + n e_t) + sum_j X_tj k_j
    transpose(C, DV, DK, DV, matrix_t.data());
    gemm(until, DK, DV, u.data(), DV, 1, matrix_t.data(), DK, dq, k_ld, false);
    add_row_then_scale(e.data(), n, gates.w.data(), scale, until, DK, k_ld, dq);
    clear_rows(dq, k_ld, until, L, DK);
    row_dots(q, dq, k_ld, L, DK, from_state.data());
    lower_times(X.data(), k, k_ld, L, DK, dq, k_ld);
    // dk_j = y_j (dC+ v_j + dn+) + sum_t X_tj q_t
    transpose(dC, DV, DK, DV, matrix_t.data());
    gemm(L - from, DK, DV, v + from * v_ld, v_ld, 1, matrix_t.data(), DK, dk + from * k_ld, k_ld, false);
    add_row_then_scale(nullptr, dn, gates.y.data() + from, 1.0f, L - from, DK, k_ld, dk + from * k_ld);
    clear_rows(dk, k_ld, 0, from, DK);
    row_dots(k, dk, k_ld, L, DK, to_state.data());
    lower_transposed_times(X.data(), q, k_ld, L, DK, dk, k_ld);
    // dv_j = y_j k_j dC+ + sum_t A_tj u_t
    gemm(L - from, DV, DK, keys.data(), DK, 1, dC, DV, dv + from * v_ld, v_ld, false);
    clear_rows(dv, v_ld, 0, from, DV);
    lower_transposed_times(A.data(), u.data(), DV, L, DV, dv, v_ld);

    // di_j = k_j . dk_j.  df_t / sigmoid(-f_t) sums all that passes through step t: from keys before t to queries
    // from t on (Z below the diagonal), from keys before t to the state after the chunk, from the state before it
    // to queries from t on, and from state to state. The stabilizer's gradient goes to the gate that M_t came by.
    row_dots(k, dk, k_ld, L, DK, k_dk.data());
    negative_sigmoids(in.f + gate_at, s.NH, L, slope.data());
    double passing = gates.carries(L) ? gates.decay * state_dot(s, C, n, dC, dn) : 0.0;
    for (Index t = 0; t < until; ++t) passing += from_state[t];
    for (Index t = 0; t < L; ++t) {
      if (gates.starts(t)) passing = 0;
      out.i[gate_at + t * s.NH] = k_dk[t] + (gates.opened[t] ? r[t] : 0.0f);
      out.f[gate_at + t * s.NH] = static_cast<float>(slope[t] * (passing + (gates.opened[t] ? 0.0f : r[t])));
      passing += static_cast<double>(Z_columns[t]) + to_state[t] - Z_rows[t] - from_state[t];
    }

    // dC = decay dC+ + sum_t s w_t q_t u_t^T,  dn = decay dn+ + sum_t s w_t e_t q_t
    mlxhog::scale(DK * DV, gates.decay, dC);
    mlxhog::scale(DK, gates.decay, dn);
    gemm(DK, DV, until, queries.data(), 1, DK, u.data(), DV, dC, DV, gates.carries(L));
    gemm(DK, 1, until, queries.data(), 1, DK, e.data(), 1, dn, 1, gates.carries(L));
  }
  out.m[state] = static_cast<float>(dm + state_dot(s, C_0, n_0, dC, dn));
}

MlstmShape cell_shape(Sizes& sizes, Index chunk, Index stride, float eps) {
  require(chunk > 0, "chunk must be at least 1");
  require(stride > 0, "stride must be at least 1");
  const Index S = sizes["S"], most = std::max<Index>(S, 1);  // larger ones are the same, and their sums overflow
  const MlstmShape s{sizes["B"],  S,  sizes["NH"], sizes["DK"], sizes["DV"], std::min(chunk, most),
                     std::min(stride, most), eps};
  sizes.expect({{"NC", s.chunks() + 1}, {"NM", s.matrices()}});
  return s;
}

Index mlstm_stride(Index DK, Index chunk) {
  require(DK > 0 && chunk > 0, "DK and chunk must be at least 1");
  return 1 + (DK - 1) / chunk;
}

}  // namespace

void bind_mlstm(nb::module_& m) {
  const std::string inputs = "q k: B S NH DK, v: B S NH DV, i f: B S NH, starts: B S";
  const std::string results = ", h: B S NH DV, den: B S NH, C: B NH NM DK DV, n: B NH NC DK, m: B NH NC";
  def(m, "mlstm", inputs + results,
      "mLSTM cell, chunkwise. n and m are the state before every chunk and after the last, NC in all, and C before "
      "every stride-th chunk alone and after the last, NM in all; entry 0 given. starts uint8 or None.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats i, Floats f, Maybe<const std::uint8_t> starts, Result h,
         Result den, Result C, Result n, Result m, Index chunk, Index stride, float eps, int threads) {
        const MlstmShape s = cell_shape(sizes, chunk, stride, eps);
        advise_huge_pages(h, s.B * s.S * s.NH * s.DV);
        advise_huge_pages(C, s.B * s.NH * s.matrices() * s.DK * s.DV);
        const MlstmResults out{h, den, C, n, m};
        parallel_for(s.B * s.NH, threads, [&](Index task) {
          forward_head(s, {q, k, v, i, f, starts}, out, task / s.NH, task % s.NH);
        });
      }, "chunk"_a, "stride"_a, "eps"_a);
  m.def("mlstm_stride", &mlstm_stride, nb::kw_only(), "DK"_a, "chunk"_a,
        "The stride with which a training step keeps as many numbers in C as in v, and no more.");
  def(m, "mlstm_grad",
      inputs + results + ", dh: B S NH DV, dq dk: B S NH DK, dv: B S NH DV, di df: B S NH, dC: B NH DK DV, "
                         "dn: B NH DK, dm: B NH",
      "Gradients of mlstm; dC, dn, dm hold the final state's gradient on entry and the initial state's on return.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats i, Floats f, Maybe<const std::uint8_t> starts, Floats h,
         Floats den, Floats C, Floats n, Floats m, Floats dh, Result dq, Result dk, Result dv, Result di, Result df,
         Result dC, Result dn, Result dm, Index chunk, Index stride, float eps, int threads) {
        const MlstmShape s = cell_shape(sizes, chunk, stride, eps);
        const Index positions = s.B * s.S * s.NH;
        for (const Result gradient : {dq, dk}) advise_huge_pages(gradient, positions * s.DK);
        advise_huge_pages(dv, positions * s.DV);
        parallel_for(s.B * s.NH, threads, [&](Index task) {
          backward_head(s, {q, k, v, i, f, starts}, {h, den, C, n, m}, dh, {dq, dk, dv, di, df, dC, dn, dm},
                        task / s.NH, task % s.NH);
        });
      }, "chunk"_a, "stride"_a, "eps"_a);
}

}  // namespace mlxhog
