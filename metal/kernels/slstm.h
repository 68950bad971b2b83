// The sLSTM cell over a whole sequence in one launch, and its gradient. A threadgroup is a head of some sequences,
// a thread one of its DH units; only h passes between them.
//
//     pre = G_t + R h + bias            of the gates i, f, z, o, in this order
//     lf = m + logsig(f)                m' = max(i, lf)           m' = i where n is 0, so at a first step
//     I = min(exp(i - m'), 1)           F = min(exp(lf - m'), 1)
//     c' = F c + I tanh(z)              n' = F n + I              h' = sigmoid(o) c' / n'
//
// Where `starts` (B, S) is not 0 a document starts: the state before that position counts as zero.
//
// Shapes are in slstm.py; adjacent threads are adjacent units, and read adjacent floats of R_T for R h, and of R for its
// transpose times dG. A threadgroup has a head of T sequences, for all of which it reads each of these floats once a step.
//
// What bounds a sequence of S positions: S steps in a row, and in each of them and in each pass
//
//     bytes of R          16 DH^2 a threadgroup, so 16 DH^2 NH ceil(B / T) in all; with T = 1 as many times as sequences
//     multiply-adds       4 T DH^2 a threadgroup
//
// A core of 128 lanes needs T DH^2 / 32 cycles for the latter, and DH^2 / 4 to read R if its cache gives 64 bytes a cycle
// (both by these numbers, nothing was measured): up to T = 8 a step takes as long as R's bytes, so more sequences are
// free. Beyond that a step would take longer. A thread keeps 7 T floats: by its registers and by the 4 T DH floats of
// threadgroup memory in the backward pass, T DH is at most 2048. tests/metal/kernels/test_cells.py counts reads of R.
//
// For gradients m is constant, since h does not depend on the scale of c and n; the gradient of m from the last state
// itself, `free`, follows max(i, lf) back to one gate. That is exact.
// Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
#pragma once

#include "sigmoid.h"

namespace mlxhog {

template <uint T>
struct SlstmShape {
  uint B, S, NH, DH;

  // Sequence n of a threadgroup. The last one repeats where they are too few: it writes the same again.
  uint sequence(uint group, uint n) const { return min(group / NH * T + n, B - 1); }
};

struct SlstmWeights {
  float I, F;
  bool by_input;  // m' = i
};

// I, F and m' of the gate i and lf; `first` where n is 0. Metal's min and max drop a NaN, these comparisons keep it.
inline SlstmWeights slstm_weights(float i, float lf, bool first) {
  const float lead = i - lf, lesser = precise::exp(-fabs(lead));
  const bool by_input = first || lead >= 0.0f;
  return {by_input ? 1.0f : lesser, lead < 0.0f ? 1.0f : lesser, by_input};
}

// `shared_h` has T DH floats or more, those of one unit side by side; 0 where the next position does not read them.
// `pre` is kept for the backward pass.
template <uint T>
void slstm_forward(const device float* G, const device float* R_T, const device float* bias, const device float* h0,
                   const device float* c0, const device float* n0, const device float* m0, const device int* starts,
                   device float* h, device float* c, device float* n, device float* m, device float* pre,
                   SlstmShape<T> s, threadgroup float* shared_h, uint3 id) {
  const uint unit = id.x, head = id.y % s.NH, own = head * s.DH + unit, units = s.NH * s.DH, matrix = s.DH * s.DH;
  float c_now[T], n_now[T], m_now[T], offsets[4];
  for (uint g = 0; g < 4; ++g) offsets[g] = bias[g * units + own];
#pragma unroll
  for (uint q = 0; q < T; ++q) {
    const uint b = s.sequence(id.y, q), start = b * units + own;
    c_now[q] = c0[start], n_now[q] = n0[start], m_now[q] = m0[start];
    shared_h[unit * T + q] = starts[b * s.S] != 0 ? 0.0f : h0[start];
  }
  for (uint t = 0; t < s.S; ++t) {
    float gates[T][4];
#pragma unroll
    for (uint q = 0; q < T; ++q) {
      const uint at = s.sequence(id.y, q) * s.S + t;
      if (starts[at] != 0) c_now[q] = n_now[q] = m_now[q] = 0.0f;
      for (uint g = 0; g < 4; ++g) gates[q][g] = G[(at * 4 + g) * units + own] + offsets[g];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // every h is written
    for (uint j = 0; j < s.DH; ++j) {
      float r[4];
      for (uint g = 0; g < 4; ++g) r[g] = R_T[(head * 4 + g) * matrix + j * s.DH + unit];
#pragma unroll
      for (uint q = 0; q < T; ++q)
        for (uint g = 0; g < 4; ++g) gates[q][g] += r[g] * shared_h[j * T + q];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // every h is read
#pragma unroll
    for (uint q = 0; q < T; ++q) {
      const uint position = s.sequence(id.y, q) * s.S + t, at = position * units + own;
      for (uint g = 0; g < 4; ++g) pre[(position * 4 + g) * units + own] = gates[q][g];
      const float lf = m_now[q] + log_sigmoid(gates[q][1]);
      const SlstmWeights by = slstm_weights(gates[q][0], lf, n_now[q] == 0.0f);
      m_now[q] = by.by_input ? gates[q][0] : lf;
      c_now[q] = by.F * c_now[q] + by.I * precise::tanh(gates[q][2]);
      n_now[q] = by.F * n_now[q] + by.I;
      const float h_now = sigmoid(gates[q][3]) * (c_now[q] / n_now[q]);
      h[at] = h_now, c[at] = c_now[q], n[at] = n_now[q], m[at] = m_now[q];
      const bool is_read = t + 1 < s.S && starts[position + 1] == 0;
      shared_h[unit * T + q] = is_read ? h_now : 0.0f;
    }
  }
}

// Backwards in time. `shared_dG` has 4 T DH floats or more. dh has all of the gradient of h but what comes through the
// recurrence; dc_last, dn_last, dm_last are those of the state after the last position.
template <uint T>
void slstm_backward(const device float* R, const device float* c0, const device float* n0, const device float* m0,
                    const device int* starts, const device float* c, const device float* n, const device float* m,
                    const device float* pre, const device float* dh, const device float* dc_last,
                    const device float* dn_last, const device float* dm_last, device float* dG, device float* dh0,
                    device float* dc0, device float* dn0, device float* dm0, SlstmShape<T> s,
                    threadgroup float* shared_dG, uint3 id) {
  const uint unit = id.x, head = id.y % s.NH, own = head * s.DH + unit, units = s.NH * s.DH;
  float dh_through[T], dc[T], dn[T], free[T];
#pragma unroll
  for (uint q = 0; q < T; ++q) {
    const uint b = s.sequence(id.y, q), start = b * units + own, last = (b * s.S + s.S - 1) * units + own;
    dh_through[q] = 0.0f, dc[q] = dc_last[start], dn[q] = dn_last[start];
    free[q] = dm_last[start] - (dc[q] * c[last] + dn[q] * n[last]);
  }
  for (uint left = s.S; left > 0; --left) {
    const uint t = left - 1;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // every dG of the step after is read
#pragma unroll
    for (uint q = 0; q < T; ++q) {
      const uint b = s.sequence(id.y, q), position = b * s.S + t, at = position * units + own;
      const bool starting = starts[position] != 0;
      const uint start = b * units + own;
      float c_before = 0.0f, n_before = 0.0f, m_before = 0.0f;
      if (!starting) {
        c_before = t == 0 ? c0[start] : c[at - units], n_before = t == 0 ? n0[start] : n[at - units];
        m_before = t == 0 ? m0[start] : m[at - units];
      }
      float gates[4];
      for (uint g = 0; g < 4; ++g) gates[g] = pre[(position * 4 + g) * units + own];
      const float lf = m_before + log_sigmoid(gates[1]);
      const SlstmWeights by = slstm_weights(gates[0], lf, n_before == 0.0f);
      const float z = precise::tanh(gates[2]), o = sigmoid(gates[3]), ratio = c[at] / n[at];

      const float dh_now = dh[at] + dh_through[q], dratio = dh_now * o / n[at];
      dc[q] += dratio;
      dn[q] -= dratio * ratio;
      const float d_gates[4] = {
          (dc[q] * z + dn[q]) * by.I + (by.by_input ? free[q] : 0.0f),
          ((dc[q] * c_before + dn[q] * n_before) * by.F + (by.by_input ? 0.0f : free[q])) * sigmoid(-gates[1]),
          dc[q] * by.I * (1.0f - z * z), dh_now * ratio * o * (1.0f - o)};
      for (uint g = 0; g < 4; ++g) {
        dG[(position * 4 + g) * units + own] = d_gates[g];
        shared_dG[(g * s.DH + unit) * T + q] = d_gates[g];
      }
      dh_through[q] = 0.0f;
      dc[q] = starting ? 0.0f : dc[q] * by.F;
      dn[q] = starting ? 0.0f : dn[q] * by.F;
      free[q] = starting || by.by_input ? 0.0f : free[q];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // every dG is written
    for (uint row = 0; row < 4 * s.DH; ++row) {
      const float r = R[(head * 4 * s.DH + row) * s.DH + unit];
#pragma unroll
      for (uint q = 0; q < T; ++q) dh_through[q] += r * shared_dG[row * T + q];
    }
#pragma unroll
    for (uint q = 0; q < T; ++q)
      if (starts[s.sequence(id.y, q) * s.S + t] != 0) dh_through[q] = 0.0f;
  }
#pragma unroll
  for (uint q = 0; q < T; ++q) {
    const uint start = s.sequence(id.y, q) * units + own;
    dh0[start] = dh_through[q];
    dc0[start] = dc[q];
    dn0[start] = dn[q];
    dm0[start] = free[q] + dc[q] * c0[start] + dn[q] * n0[start];
  }
}

}  // namespace mlxhog
