// The sLSTM cell over a whole sequence in one launch, and its gradient. A threadgroup is a head of a sequence,
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
// transpose times dG.
//
// For gradients m is constant, since h does not depend on the scale of c and n; the gradient of m from the last state
// itself, `free`, follows max(i, lf) back to one gate. That is exact.
// Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
#pragma once

#include "sigmoid.h"

namespace mlxhog {

struct SlstmShape {
  uint B, S, NH, DH;
};

// Pre-activations of the four gates at position t; `h` has that of the head's units before t, of which `past` count.
inline void slstm_pre(const device float* G, const device float* R_T, const device float* bias, SlstmShape s, uint b,
                      uint head, uint t, uint unit, const threadgroup float* h, uint past, device float* pre,
                      thread float* gates) {
  const uint units = s.NH * s.DH, own = head * s.DH + unit, matrix = s.DH * s.DH;
  for (uint g = 0; g < 4; ++g) gates[g] = G[((b * s.S + t) * 4 + g) * units + own] + bias[g * units + own];
  for (uint j = 0; j < past; ++j)
    for (uint g = 0; g < 4; ++g) gates[g] += R_T[(head * 4 + g) * matrix + j * s.DH + unit] * h[j];
  for (uint g = 0; g < 4; ++g) pre[((b * s.S + t) * 4 + g) * units + own] = gates[g];
}

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

// `shared_h` has DH floats or more. `pre` is kept for the backward pass.
inline void slstm_forward(const device float* G, const device float* R_T, const device float* bias,
                          const device float* h0, const device float* c0, const device float* n0,
                          const device float* m0, const device int* starts, device float* h, device float* c,
                          device float* n, device float* m, device float* pre, SlstmShape s,
                          threadgroup float* shared_h, uint3 id) {
  const uint unit = id.x, b = id.y / s.NH, head = id.y % s.NH, start = id.y * s.DH + unit;
  float c_now = c0[start], n_now = n0[start], m_now = m0[start];
  shared_h[unit] = h0[start];
  for (uint t = 0; t < s.S; ++t) {
    const bool starting = starts[b * s.S + t] != 0;
    if (starting) c_now = n_now = m_now = 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // every h is written
    float gates[4];
    slstm_pre(G, R_T, bias, s, b, head, t, unit, shared_h, starting ? 0 : s.DH, pre, gates);
    const float lf = m_now + log_sigmoid(gates[1]);
    const SlstmWeights by = slstm_weights(gates[0], lf, n_now == 0.0f);
    m_now = by.by_input ? gates[0] : lf;
    c_now = by.F * c_now + by.I * precise::tanh(gates[2]);
    n_now = by.F * n_now + by.I;
    const float h_now = sigmoid(gates[3]) * (c_now / n_now);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // every h is read
    shared_h[unit] = h_now;
    const uint at = ((b * s.S + t) * s.NH + head) * s.DH + unit;
    h[at] = h_now;
    c[at] = c_now;
    n[at] = n_now;
    m[at] = m_now;
  }
}

// Backwards in time. `shared_dG` has 4 DH floats or more. dh has all of the gradient of h but what comes through the
// recurrence; dc_last, dn_last, dm_last are those of the state after the last position.
inline void slstm_backward(const device float* R, const device float* c0, const device float* n0,
                           const device float* m0, const device int* starts, const device float* c,
                           const device float* n, const device float* m, const device float* pre,
                           const device float* dh, const device float* dc_last, const device float* dn_last,
                           const device float* dm_last, device float* dG, device float* dh0, device float* dc0,
                           device float* dn0, device float* dm0, SlstmShape s, threadgroup float* shared_dG, uint3 id) {
  const uint unit = id.x, b = id.y / s.NH, head = id.y % s.NH, start = id.y * s.DH + unit, units = s.NH * s.DH;
  const uint last = (b * s.S + s.S - 1) * units + head * s.DH + unit;
  float dh_through = 0.0f, dc = dc_last[start], dn = dn_last[start];
  float free = dm_last[start] - (dc * c[last] + dn * n[last]);
  for (uint left = s.S; left > 0; --left) {
    const uint t = left - 1, at = (b * s.S + t) * units + head * s.DH + unit;
    const bool first = t == 0, starting = starts[b * s.S + t] != 0;
    float c_before = first ? c0[start] : c[at - units], n_before = first ? n0[start] : n[at - units];
    float m_before = first ? m0[start] : m[at - units];
    if (starting) c_before = n_before = m_before = 0.0f;
    float gates[4];
    for (uint g = 0; g < 4; ++g) gates[g] = pre[((b * s.S + t) * 4 + g) * units + head * s.DH + unit];
    const float lf = m_before + log_sigmoid(gates[1]);
    const SlstmWeights by = slstm_weights(gates[0], lf, n_before == 0.0f);
    const float z = precise::tanh(gates[2]), o = sigmoid(gates[3]), ratio = c[at] / n[at];

    const float dh_now = dh[at] + dh_through, dratio = dh_now * o / n[at];
    dc += dratio;
    dn -= dratio * ratio;
    const float d_gates[4] = {
        (dc * z + dn) * by.I + (by.by_input ? free : 0.0f),
        ((dc * c_before + dn * n_before) * by.F + (by.by_input ? 0.0f : free)) * sigmoid(-gates[1]),
        dc * by.I * (1.0f - z * z), dh_now * ratio * o * (1.0f - o)};
    threadgroup_barrier(mem_flags::mem_threadgroup);  // every dG of the step after is read
    for (uint g = 0; g < 4; ++g) {
      dG[((b * s.S + t) * 4 + g) * units + head * s.DH + unit] = d_gates[g];
      shared_dG[g * s.DH + unit] = d_gates[g];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // every dG is written
    dh_through = 0.0f;
    for (uint row = 0; row < 4 * s.DH; ++row) dh_through += R[(head * 4 * s.DH + row) * s.DH + unit] * shared_dG[row];
    dc *= by.F;
    dn *= by.F;
    if (by.by_input) free = 0.0f;
    if (starting) dh_through = dc = dn = free = 0.0f;
  }
  dh0[start] = dh_through;
  dc0[start] = dc;
  dn0[start] = dn;
  dm0[start] = free + dc * c0[start] + dn * n0[start];
}

}  // namespace mlxhog
