#include "decode_cells.h"

#include <algorithm>
#include <cmath>

#include "pool.h"

namespace mlxhog {
namespace {

// Numbers of a state that a thread has to have; see few_rows.cpp.
constexpr Index kWorthAThread = 1 << 18;

// One step of the cell of one head: state C (DK, DV), n (DK), m, and h (DV).
MLXHOG_CLONES void cell_step(Index DK, Index DV, float eps, const float* q, const float* k, const float* v, float i,
                             float f, const float* C, const float* n, const float* m, float* new_C, float* new_n,
                             float* new_m, float* h) {
  const float decayed = log_sigmoid_f32(f) + *m;
  const float top = i > decayed || i != i ? i : decayed;  // NaN stays NaN
  const float F = exp_f32(decayed - top), I = exp_f32(i - top), scale = 1.0f / std::sqrt(static_cast<float>(DK));
  float den = 0;
#pragma omp simd reduction(+ : den)
  for (Index a = 0; a < DK; ++a) {
    new_n[a] = F * n[a] + I * k[a];
    den += q[a] * new_n[a];
  }
  std::fill(h, h + DV, 0.0f);
  for (Index a = 0; a < DK; ++a, C += DV, new_C += DV) {
    const float key = I * k[a], query = q[a];
#pragma omp simd
    for (Index b = 0; b < DV; ++b) {
      const float value = F * C[b] + key * v[b];
      new_C[b] = value;
      h[b] += query * value;
    }
  }
  const float floor = exp_f32(-top), size = std::fabs(scale * den);
  const float factor = scale / ((size < floor ? floor : size) + eps);
#pragma omp simd
  for (Index b = 0; b < DV; ++b) h[b] *= factor;
  *new_m = top;
}

}  // namespace

void mlstm_step(Index rows, Index heads, Index DK, Index DV, float eps, const CellInputs& in, const float* before,
                float* after, Index stride, float* h, int threads) {
  const Index cells = rows * heads, worth = std::max<Index>(1, cells * DK * DV / kWorthAThread);
  parallel_for(cells, static_cast<int>(std::min<Index>(threads, worth)), [&](Index cell) {
    const Index row = cell / heads, head = cell % heads;
    const Index C = row * stride + head * DK * DV, n = row * stride + heads * DK * DV + head * DK;
    const Index m = row * stride + heads * (DK * DV + DK) + head;
    const Index qk = row * in.qk_stride + head * DK, v = row * in.v_stride + head * DV;
    cell_step(DK, DV, eps, in.q + qk, in.k + qk, in.v + v, in.i[cell], in.f[cell], before + C, before + n, before + m,
              after + C, after + n, after + m, h + cell * DV);
  });
}

}  // namespace mlxhog
