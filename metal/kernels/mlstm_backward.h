// Gradients of the mLSTM cell, with
//
//     u_t = dh_t / N_t           N_t = max(|den_t|, exp(-M_t)) + eps            w_t = exp(b_t + m - M_t)
//     e_t = dL/d den_t           E_tj = exp(b_t - b_j + i_j - M_t), j <= t      y_j = exp(g - b_j + i_j - m')
//     X_tj = s E_tj (u_t . v_j + e_t)                  Z_tj = X_tj (q_t . k_j)                  s = DK^-1/2
//
// and dC', dn' the gradients of the state after the chunk:
//
//     dC = exp(g + m - m') dC' + sum_t s w_t q_t u_t^T                          mlstm_bwd_states
//     dq_t = sum_j X_tj k_j + s w_t (C u_t + n e_t)                             mlstm_bwd_out
//     dk_j = sum_t X_tj q_t + y_j (dC' v_j + dn')
//     dv_j = sum_t s E_tj (q_t . k_j) u_t + y_j dC'^T k_j
//     di_j = sum_t Z_tj + r_j                                                   r_j = y_j k_j . (dC' v_j + dn')
//     db_t = sum_{j<t} Z_tj - sum_{t'>t} Z_t't - r_t + s w_t q_t . (C u_t + n e_t)
//
// dn is dC with e_t in place of u_t^T. These hold the stabilisers m and M constant, which h does not depend on but
// through eps, dM_t = -(dh_t . h_t) eps / N_t. The sum g = b_L also has all that the state after the chunk depends on,
// <C', dC'> + n' . dn'. `models/ops/metal/cells.py` says what follows from both.
#pragma once

#include "mlstm_shape.h"

namespace mlxhog {

enum : uint {
  kMlstmBackwardRows = 8,  // positions that a group of mlstm_bwd_out differentiates, a simdgroup each
  kMlstmBackwardWeights = kMlstmBackwardRows * 2 * kMlstmChunk,
};

// A thread per position: rN = 1 / N_t, dden = e_t and dM.
inline void mlstm_bwd_pre(const device float* den, const device float* M, const device float* h,
                          const device float* dh, device float* rN, device float* dden, device float* dM,
                          MlstmShape s, float eps, uint3 id) {
  const uint t = id.x, head = id.y;
  if (t >= s.S || head >= s.B * s.NH) return;
  const uint at = head * s.S + t, row = mlstm_row(s, head, t) * s.DV;
  const float denominator = den[at], magnitude = fabs(denominator), bound = precise::exp(-M[at]);
  const float inverse = 1.0f / (max(magnitude, bound) + eps);
  float dot = 0.0f;
  for (uint d = 0; d < s.DV; ++d) dot += dh[row + d] * h[row + d];
  rN[at] = inverse;
  dden[at] = magnitude > bound ? -copysign(inverse, denominator) * dot : 0.0f;
  dM[at] = -eps * inverse * dot;
}

// A thread per element of C, which goes through the chunks from the last to the first; those of column 0 keep dn.
// Entry c of dC and dn is the gradient of the state before chunk c, which is the state after chunk c - 1.
inline void mlstm_bwd_states(const device float* q, const device float* b, const device float* m,
                             const device float* M, const device float* rN, const device float* dden,
                             const device float* dh, const device float* dC_last, const device float* dn_last,
                             device float* dC, device float* dn, MlstmShape s, uint3 id) {
  const uint column = id.x, d = id.y, head = id.z;
  if (column >= s.DV || d >= s.DK || head >= s.B * s.NH) return;
  const float scale = mlstm_scale(s);
  float dC_now = dC_last[(head * s.DK + d) * s.DV + column], dn_now = dn_last[head * s.DK + d];
  for (uint c = mlstm_chunks(s);; --c) {
    const uint state = mlstm_state(s, head, c), at = state * s.DK + d;
    dC[at * s.DV + column] = dC_now;
    if (column == 0) dn[at] = dn_now;
    if (c == 0) return;

    const uint start = (c - 1) * s.L, count = mlstm_count(s, c - 1);
    const float m_before = m[state - 1], decay = precise::exp(b[head * s.S + start + count - 1] + m_before - m[state]);
    dC_now *= decay;
    dn_now *= decay;
    for (uint j = 0; j < count; ++j) {
      const uint position = head * s.S + start + j, row = mlstm_row(s, head, start + j);
      const float query = scale * precise::exp(b[position] + m_before - M[position]) * q[row * s.DK + d];
      dC_now += query * rN[position] * dh[row * s.DV + column];
      dn_now += query * dden[position];
    }
  }
}

// The product of two rows, to all lanes of a simdgroup.
inline float mlstm_dot(const device float* x, const device float* y, uint width, uint lane) {
  float sum = 0.0f;
  for (uint d = lane; d < width; d += kMlstmLanes) sum += x[d] * y[d];
  return simd_sum(sum);
}

// A simdgroup per position, first as a query of the keys up to it, then as a key of the queries from it on: it alone
// writes its rows, so nothing is added atomically. A thread per column. The simdgroup keeps the weights of its chunk
// in its own part of `weights`, which has kMlstmBackwardWeights floats.
inline void mlstm_bwd_out(const device float* q, const device float* k, const device float* v, const device float* i,
                          const device float* b, const device float* C, const device float* n,
                          const device float* m, const device float* M, const device float* rN,
                          const device float* dden, const device float* dh, const device float* dC,
                          const device float* dn, device float* dq, device float* dk, device float* dv,
                          device float* di, device float* db, MlstmShape s, threadgroup float* weights, uint3 id,
                          uint3 thread_in_group) {
  if (id.y >= s.S) return;  // the whole simdgroup
  const uint lane = thread_in_group.x, head = id.z, c = id.y / s.L, here = id.y % s.L, start = c * s.L;
  const uint count = mlstm_count(s, c), position = head * s.S + start, before = mlstm_state(s, head, c);
  const uint after = before + 1, row = mlstm_row(s, head, id.y), q_row = row * s.DK, v_row = row * s.DV;
  const float scale = mlstm_scale(s), b_t = b[position + here], M_t = M[position + here];
  threadgroup float* X = weights + thread_in_group.y * 2 * kMlstmChunk;
  threadgroup float* A = X + kMlstmChunk;

  // As the query t, of keys j <= t.
  const float inverse = rN[position + here], e_t = dden[position + here];
  float db_t = 0.0f, di_t = 0.0f;
  for (uint j = 0; j <= here; ++j) {
    const uint other = mlstm_row(s, head, start + j);
    const float q_k = mlstm_dot(q + q_row, k + other * s.DK, s.DK, lane);
    const float dh_v = mlstm_dot(dh + v_row, v + other * s.DV, s.DV, lane);
    const float weight = scale * precise::exp(b_t - b[position + j] + i[other] - M_t) * (dh_v * inverse + e_t);
    if (lane == 0) X[j] = weight;
    if (j < here) db_t += weight * q_k;
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  const float from_state = scale * precise::exp(b_t + m[before] - M_t);
  float q_state = 0.0f;
  for (uint strip = 0; strip < s.DK; strip += kMlstmLanes) {
    const uint width = min(uint(kMlstmLanes), s.DK - strip), d = strip + lane;
    float sum = 0.0f;  // C u of the thread's own column
    for (uint e = 0; e < width; ++e) {
      const float C_dh = mlstm_dot(C + (before * s.DK + strip + e) * s.DV, dh + v_row, s.DV, lane);
      if (e == lane) sum = C_dh * inverse;
    }
    if (lane >= width) continue;
    sum = from_state * (sum + n[before * s.DK + d] * e_t);
    q_state += q[q_row + d] * sum;
    for (uint j = 0; j <= here; ++j) sum += X[j] * k[mlstm_row(s, head, start + j) * s.DK + d];
    dq[q_row + d] = sum;
  }
  q_state = simd_sum(q_state);
  simdgroup_barrier(mem_flags::mem_threadgroup);  // X has been read

  // As the key j, of queries t >= j.
  const float i_j = i[row];
  for (uint t = here; t < count; ++t) {
    const uint other = mlstm_row(s, head, start + t);
    const float q_k = mlstm_dot(q + other * s.DK, k + q_row, s.DK, lane);
    const float dh_v = mlstm_dot(dh + other * s.DV, v + v_row, s.DV, lane);
    const float weight = scale * precise::exp(b[position + t] - b_t + i_j - M[position + t]);
    const float X_t = weight * (dh_v * rN[position + t] + dden[position + t]);
    if (lane == 0) {
      X[t] = X_t;
      A[t] = weight * q_k * rN[position + t];
    }
    di_t += X_t * q_k;
    if (t > here) db_t -= X_t * q_k;
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  const float to_state = precise::exp(b[position + count - 1] - b_t + i_j - m[after]);
  float k_state = 0.0f;
  for (uint strip = 0; strip < s.DK; strip += kMlstmLanes) {
    const uint width = min(uint(kMlstmLanes), s.DK - strip), d = strip + lane;
    float sum = 0.0f;  // dC' v of the thread's own column
    for (uint e = 0; e < width; ++e) {
      const float dC_v = mlstm_dot(dC + (after * s.DK + strip + e) * s.DV, v + v_row, s.DV, lane);
      if (e == lane) sum = dC_v;
    }
    if (lane >= width) continue;
    sum = to_state * (sum + dn[after * s.DK + d]);
    k_state += k[q_row + d] * sum;
    for (uint t = here; t < count; ++t) sum += X[t] * q[mlstm_row(s, head, start + t) * s.DK + d];
    dk[q_row + d] = sum;
  }
  k_state = simd_sum(k_state);
  for (uint e = lane; e < s.DV; e += kMlstmLanes) {
    float sum = 0.0f;
    for (uint d = 0; d < s.DK; ++d) sum += k[q_row + d] * dC[(after * s.DK + d) * s.DV + e];
    sum *= to_state;
    for (uint t = here; t < count; ++t) sum += A[t] * dh[mlstm_row(s, head, start + t) * s.DV + e];
    dv[v_row + e] = sum;
  }
  if (lane == 0) {
    di[row] = di_t + k_state;
    db[position + here] = db_t - k_state + q_state;
  }
}

}  // namespace mlxhog
