// Common to the forward and the backward pass of the mLSTM cell: one chunk's gates and scores.
//
// With b_t the running sum of log sigmoid(f), c_j = i_j - b_j and top_t = max(m, c_1 .. c_t), the stabiliser is
// M_t = b_t + top_t and every weight is an exponential of a difference:
//   E_tj = exp(c_j - top_t)   w_t = exp(m - top_t)   y_j = exp(b_L + c_j - m')   m' = b_L + top_L.
#pragma once

#include <vector>

#include "simd.h"

namespace mlxhog {

struct ChunkGates {
  // c and top as unevaluated float sums hi + lo: their difference keeps its digits where b is large.
  std::vector<float> c_hi, c_lo, top_hi, top_lo;
  std::vector<float> w, y, floor;  // floor_t = exp(-M_t), the least denominator
  std::vector<char> opened;        // whether c_t alone is top_t, so that M_t = i_t
  float decay = 0;                 // exp(b_L + m - m'), the weight of the old state in the new one
  float m_next = 0;

  explicit ChunkGates(Index chunk);

  // i, f: the head's first value of the chunk, `stride` floats between steps.
  void compute(const float* i, const float* f, Index stride, Index L, float m);
};

// Products with lower triangular matrices (L, L), computed in bands of rows so that most of what is above the diagonal
// is left out. Above the diagonal A has to be 0 within a band, and scores are unspecified.
// S[t, j] = sum_d q[t, d] k_t[d, j]
void lower_scores(const float* q, Index q_ld, const float* k_t, Index L, Index DK, float* S);
// out[t, :] += sum_{j <= t} A[t, j] rows[j, :]
void lower_times(const float* A, const float* rows, Index ld, Index L, Index width, float* out, Index out_ld);
// out[j, :] += sum_{t >= j} A[t, j] rows[t, :]
void lower_transposed_times(const float* A, const float* rows, Index ld, Index L, Index width, float* out,
                            Index out_ld);

// The scores S (L, L) become A_tj = scale * E_tj S_tj for j <= t, 0 for j > t; row_sums[t * stride] += sum_j A_tj.
void weigh_scores(const ChunkGates&, Index L, float scale, float* S, float* row_sums, Index stride);

// For the backward pass: scores S and P become A_tj = scale * E_tj S_tj and X_tj = scale * E_tj (P_tj + e_t), again
// 0 for j > t. Of Z_tj = S_tj X_tj it sums the part below the diagonal, over rows and over columns.
void weigh_two_scores(const ChunkGates&, Index L, float scale, const float* e, float* S, float* P, float* row_sums,
                      float* column_sums);

// C_next = decay C + sum_j y_j k_j^T v_j for one chunk's keys (L, DK) and values (L, DV). `keys` receives y_j k_j.
void next_matrix(const ChunkGates&, const float* k, Index k_ld, const float* v, Index v_ld, Index L, Index DK, Index DV,
                 const float* C, float* C_next, float* keys);

// out[r, :] = factor[r] * scale * rows[r, :] (factor may be null: 1); out is packed, rows are `ld` apart.
void scaled_rows(const float* rows, Index ld, Index count, Index width, const float* factor, float scale,
                 float* out);

// out[r] = sum_j a[r, j] * b[r, j]
void row_dots(const float* a, Index a_ld, const float* b, Index b_ld, Index count, Index width, float* out);

}  // namespace mlxhog
