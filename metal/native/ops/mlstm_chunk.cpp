#include "mlstm_chunk.h"

#include <algorithm>
#include <cmath>

#include "gemm.h"

namespace mlxhog {
namespace {

constexpr Index kBand = 14;  // the rows of a tile of `gemm`

MLXHOG_CLONES void log_sigmoids(const float* f, Index stride, Index L, float* out) {
#pragma omp simd
  for (Index t = 0; t < L; ++t) out[t] = log_sigmoid_f32(f[t * stride]);
}

MLXHOG_CLONES void exponentials(float* x, Index count) {
#pragma omp simd
  for (Index t = 0; t < count; ++t) x[t] = exp_f32(x[t]);
}

// E_tj; the argument is <= 0 for j <= t, and capped so that the entries to be masked stay finite.
MLXHOG_INLINE float decay_weight(const float* c_hi, const float* c_lo, Index j, float top_hi, float top_lo) {
  const float difference = (c_hi[j] - top_hi) + (c_lo[j] - top_lo);
  return exp_f32(difference > 0.0f ? 0.0f : difference);
}

MLXHOG_CLONES float weigh_row(const float* c_hi, const float* c_lo, float top_hi, float top_lo, Index t, Index L,
                              float scale, float* S) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j <= t; ++j) {
    S[j] *= scale * decay_weight(c_hi, c_lo, j, top_hi, top_lo);
    sum += S[j];
  }
  std::fill(S + t + 1, S + L, 0.0f);
  return sum;
}

MLXHOG_CLONES float weigh_two_rows(const float* c_hi, const float* c_lo, float top_hi, float top_lo, Index t,
                                   Index L, float scale, float e, float* S, float* P, float* column_sums) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < t; ++j) {
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

}  // namespace

ChunkGates::ChunkGates(Index chunk)
    : c_hi(chunk), c_lo(chunk), top_hi(chunk), top_lo(chunk), w(chunk), y(chunk), floor(chunk), opened(chunk) {}

void ChunkGates::compute(const float* i, const float* f, Index stride, Index L, float m) {
  log_sigmoids(f, stride, L, w.data());
  double b = 0, top = m;
  for (Index t = 0; t < L; ++t) {
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
  for (Index t = 0; t < L; ++t)
    y[t] = static_cast<float>((b - m_next) + (static_cast<double>(c_hi[t]) + c_lo[t]));
  decay = std::exp(static_cast<float>(b + m - m_next));
  exponentials(w.data(), L);
  exponentials(y.data(), L);
  exponentials(floor.data(), L);
}

void lower_scores(const float* q, Index q_ld, const float* k_t, Index L, Index DK, float* S) {
  for (Index t = 0; t < L; t += kBand) {
    const Index rows = std::min(kBand, L - t);
    gemm(rows, t + rows, DK, q + t * q_ld, q_ld, 1, k_t, L, S + t * L, L, false);
  }
}

void lower_times(const float* A, const float* rows, Index ld, Index L, Index width, float* out, Index out_ld) {
  for (Index t = 0; t < L; t += kBand) {
    const Index count = std::min(kBand, L - t);
    gemm(count, width, t + count, A + t * L, L, 1, rows, ld, out + t * out_ld, out_ld, true);
  }
}

void lower_transposed_times(const float* A, const float* rows, Index ld, Index L, Index width, float* out,
                            Index out_ld) {
  for (Index j = 0; j < L; j += kBand) {
    const Index count = std::min(kBand, L - j);
    gemm(count, width, L - j, A + j * L + j, 1, L, rows + j * ld, ld, out + j * out_ld, out_ld, true);
  }
}

void weigh_scores(const ChunkGates& g, Index L, float scale, float* S, float* row_sums, Index stride) {
  for (Index t = 0; t < L; ++t)
    row_sums[t * stride] +=
        weigh_row(g.c_hi.data(), g.c_lo.data(), g.top_hi[t], g.top_lo[t], t, L, scale, S + t * L);
}

void weigh_two_scores(const ChunkGates& g, Index L, float scale, const float* e, float* S, float* P, float* row_sums,
                      float* column_sums) {
  std::fill(column_sums, column_sums + L, 0.0f);
  for (Index t = 0; t < L; ++t)
    row_sums[t] = weigh_two_rows(g.c_hi.data(), g.c_lo.data(), g.top_hi[t], g.top_lo[t], t, L, scale, e[t], S + t * L,
                                 P + t * L, column_sums);
}

MLXHOG_CLONES void scaled_rows(const float* rows, Index ld, Index count, Index width, const float* factor,
                               float scale, float* out) {
  for (Index r = 0; r < count; ++r) {
    const float total = factor ? factor[r] * scale : scale;
#pragma omp simd
    for (Index j = 0; j < width; ++j) out[r * width + j] = total * rows[r * ld + j];
  }
}

void next_matrix(const ChunkGates& g, const float* k, Index k_ld, const float* v, Index v_ld, Index L, Index DK,
                 Index DV, const float* C, float* C_next, float* keys) {
  scaled_rows(k, k_ld, L, DK, g.y.data(), 1.0f, keys);
  scaled_rows(C, DV, DK, DV, nullptr, g.decay, C_next);
  gemm(DK, DV, L, keys, 1, DK, v, v_ld, C_next, DV, true);
}

MLXHOG_CLONES void row_dots(const float* a, Index a_ld, const float* b, Index b_ld, Index count, Index width,
                            float* out) {
  for (Index r = 0; r < count; ++r) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index j = 0; j < width; ++j) sum += a[r * a_ld + j] * b[r * b_ld + j];
    out[r] = sum;
  }
}

}  // namespace mlxhog
