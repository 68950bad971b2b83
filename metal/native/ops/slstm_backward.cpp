#include <algorithm>
#include <vector>

#include "gemm.h"
#include "pool.h"
#include "slstm.h"

namespace mlxhog {
namespace {

// h depends on c and n only through their ratio, so m counts as constant; the gradient of m from the last state itself
// is `free`, which follows max(i~, lf) back to a gate.
MLXHOG_CLONES void free_of_last(Index DH, const float* c, const float* n, const float* dc, const float* dn, float* dm) {
#pragma omp simd
  for (Index e = 0; e < DH; ++e) dm[e] -= dc[e] * c[e] + dn[e] * n[e];
}

MLXHOG_CLONES void add_of_first(Index DH, const float* c, const float* n, const float* dc, const float* dn, float* dm) {
#pragma omp simd
  for (Index e = 0; e < DH; ++e) dm[e] += dc[e] * c[e] + dn[e] * n[e];
}

// One step of one head of one sequence; d_pre has four rows of DH.
MLXHOG_CLONES void step_gradient(Index DH, const float* tape, const float* c_old, const float* n_old, const float* dh,
                                 const float* dh_next, float* dc, float* dn, float* free, float* d_pre) {
#pragma omp simd
  for (Index e = 0; e < DH; ++e) {
    const float write = tape[kWrite * DH + e], keep = tape[kKeep * DH + e];
    const float z = tape[kTanhZ * DH + e], o = tape[kSigmoidO * DH + e];
    const float inverse = 1.0f / tape[kN * DH + e], ratio = tape[kC * DH + e] * inverse;
    const float total = dh[e] + dh_next[e], d_ratio = total * o * inverse;
    const float dc_now = dc[e] + d_ratio, dn_now = dn[e] - d_ratio * ratio;
    const bool by_input = write == 1.0f;  // m' = i~
    d_pre[e] = (dc_now * z + dn_now) * write + (by_input ? free[e] : 0.0f);
    d_pre[DH + e] =
        ((dc_now * c_old[e] + dn_now * n_old[e]) * keep + (by_input ? 0.0f : free[e])) * tape[kForget * DH + e];
    d_pre[2 * DH + e] = dc_now * write * (1.0f - z * z);
    d_pre[3 * DH + e] = total * ratio * o * (1.0f - o);
    dc[e] = dc_now * keep;
    dn[e] = dn_now * keep;
    free[e] = by_input ? 0.0f : free[e];
  }
}

// All steps of some sequences of one head, side by side, last step first.
void backward_rows(const SlstmShape& s, const SlstmSaved& saved, const float* dh, const SlstmGradients& out,
                   Index head, Index first, Index rows) {
  const Index DH = s.DH;
  const SlstmState& d = out.state;
  float* const gates[] = {out.i, out.f, out.z, out.o};
  const float* R = saved.R + head * 4 * DH * DH;
  std::vector<float> d_pre(rows * 4 * DH);
  const std::vector<float> nothing(DH);
  const auto unit = [&](Index r) { return ((first + r) * s.NH + head) * DH; };
  for (Index r = 0; r < rows; ++r) {
    const float* tape = saved.tape + s.at(first + r, s.S - 1, head) * kSlstmTape;
    free_of_last(DH, tape + kC * DH, tape + kN * DH, d.c + unit(r), d.n + unit(r), d.m + unit(r));
  }
  for (Index t = s.S - 1; t >= 0; --t) {
    const auto starts = [&](Index r) { return saved.starts && saved.starts[(first + r) * s.S + t]; };
    for (Index r = 0; r < rows; ++r) {
      const Index at = s.at(first + r, t, head);
      const float* tape = saved.tape + at * kSlstmTape;
      const float *c_old = nothing.data(), *n_old = nothing.data();
      if (!starts(r)) {
        const float* before = tape - (t > 0 ? s.width() * kSlstmTape : 0);
        c_old = t > 0 ? before + kC * DH : saved.c0 + unit(r);
        n_old = t > 0 ? before + kN * DH : saved.n0 + unit(r);
      }
      float* row = d_pre.data() + r * 4 * DH;
      step_gradient(DH, tape, c_old, n_old, dh + at, d.h + unit(r), d.c + unit(r), d.n + unit(r), d.m + unit(r), row);
      for (Index g = 0; g < 4; ++g) std::copy_n(row + g * DH, DH, gates[g] + at);
    }
    gemm(rows, DH, 4 * DH, d_pre.data(), 4 * DH, 1, R, DH, d.h + unit(0), s.width(), false);
    for (Index r = 0; r < rows; ++r)
      if (starts(r))
        for (float* x : {d.h, d.c, d.n, d.m}) std::fill_n(x + unit(r), DH, 0.0f);
  }
  for (Index r = 0; r < rows; ++r)
    add_of_first(DH, saved.c0 + unit(r), saved.n0 + unit(r), d.c + unit(r), d.n + unit(r), d.m + unit(r));
}

MLXHOG_CLONES void add_rows(Index rows, Index width, const float* x, Index ld, float* sum) {
  for (Index r = 0; r < rows; ++r) {
#pragma omp simd
    for (Index e = 0; e < width; ++e) sum[e] += x[r * ld + e];
  }
}

// Rows of dR and db of one gate of one head: dR = sum_t d_t h_{t-1}^T, db = sum_t d_t, sequence by sequence.
void sum_gate(const SlstmShape& s, const SlstmSaved& saved, const float* d, Index head, float* dR, float* db) {
  const Index DH = s.DH, ld = s.width();
  std::vector<float> of_sequence(DH);
  std::fill_n(dR, DH * DH, 0.0f);
  std::fill_n(db, DH, 0.0f);
  for (Index b = 0; b < s.B; ++b) {
    const auto starts = [&](Index t) { return saved.starts && saved.starts[b * s.S + t]; };
    if (!starts(0))
      gemm(DH, DH, 1, d + s.at(b, 0, head), 1, ld, saved.h0 + (b * s.NH + head) * DH, ld, dR, DH, true);
    for (Index from = 1, to; from < s.S; from = to + 1) {  // positions whose past is one stretch of h
      for (to = from; to < s.S && !starts(to);) ++to;
      if (to > from)
        gemm(DH, DH, to - from, d + s.at(b, from, head), 1, ld, saved.h + s.at(b, from - 1, head), ld, dR, DH, true);
    }
    std::fill(of_sequence.begin(), of_sequence.end(), 0.0f);
    add_rows(s.S, DH, d + s.at(b, 0, head), ld, of_sequence.data());
    add_rows(1, DH, of_sequence.data(), DH, db);
  }
}

}  // namespace

void slstm_backward(const SlstmShape& s, const SlstmSaved& saved, const float* dh, const SlstmGradients& out,
                    int threads) {
  const SlstmRows split(s, threads);
  parallel_for(s.NH * split.blocks, threads, [&](Index task) {
    const Index first = task % split.blocks * split.rows;
    backward_rows(s, saved, dh, out, task / split.blocks, first, std::min(split.rows, s.B - first));
  });
  const float* const gates[] = {out.i, out.f, out.z, out.o};
  parallel_for(s.NH * 4, threads, [&](Index task) {
    const Index head = task / 4, g = task % 4;
    sum_gate(s, saved, gates[g], head, out.R + task * s.DH * s.DH, out.b + g * s.width() + head * s.DH);
  });
}

}  // namespace mlxhog
