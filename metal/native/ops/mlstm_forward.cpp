#include <algorithm>
#include <cmath>
#include <vector>

#include "gemm.h"
#include "mlstm.h"
#include "mlstm_chunk.h"
#include "pool.h"

namespace mlxhog {
namespace {

// h_t = num_t / (max(|den_t|, floor_t) + eps), num in place.
MLXHOG_CLONES void normalise(const float* den, Index den_stride, const float* floor, float eps, Index L,
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
    gates.compute(in.i + first * s.NH + head, in.f + first * s.NH + head, s.NH, L, m[0]);

    // num = s w_t q_t C + A V,  den = s w_t q_t . n + sum_j A_tj,  A_tj = s (q_t . k_j) E_tj
    scaled_rows(q, k_ld, L, DK, gates.w.data(), scale, queries.data());
    gemm(L, DV, DK, queries.data(), DK, 1, C, DV, h, v_ld, false);
    gemm(L, 1, DK, queries.data(), DK, 1, n, 1, den, s.NH, false);
    transpose(k, k_ld, L, DK, keys_t.data());
    lower_scores(q, k_ld, keys_t.data(), L, DK, A.data());
    weigh_scores(gates, L, scale, A.data(), den, s.NH);
    lower_times(A.data(), v, v_ld, L, DV, h, v_ld);
    normalise(den, s.NH, gates.floor.data(), s.eps, L, DV, v_ld, h);
    // C' = decay C + sum_j y_j k_j^T v_j,  n' = decay n + sum_j y_j k_j
    const Index kept = s.matrix(c + 1);
    float* C_next = kept < 0 ? between[c % 2].data() : matrices + kept * DK * DV;
    next_matrix(gates, k, k_ld, v, v_ld, L, DK, DV, C, C_next, keys.data());
    C = C_next;
    float* n_next = n + DK;
    for (Index d = 0; d < DK; ++d) {
      float sum = gates.decay * n[d];
      for (Index t = 0; t < L; ++t) sum += keys[t * DK + d];
      n_next[d] = sum;
    }
    m[1] = gates.m_next;
  }
}

}  // namespace

void mlstm_forward(const MlstmShape& s, const MlstmInputs& in, const MlstmResults& out, int threads) {
  parallel_for(s.B * s.NH, threads, [&](Index task) { forward_head(s, in, out, task / s.NH, task % s.NH); });
}

}  // namespace mlxhog
