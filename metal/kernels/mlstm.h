// The mLSTM cell, chunk by chunk. Within a chunk, with lf = logsig(f), positions t = 1..L and the state
// C, n, m before the chunk:
//
//     b_t = lf_1 + .. + lf_t      g = b_L      a_t = g - b_t + i_t                              mlstm_gates
//     m' = max(g + m, max a)      C' = exp(g + m - m') C + sum_t exp(a_t - m') k_t v_t^T        mlstm_states
//     M_t = max(b_t + m, max_{j<=t} (b_t - b_j + i_j))      w_t = exp(b_t + m - M_t)            mlstm_out
//     A_tj = s (q_t . k_j) exp(b_t - b_j + i_j - M_t)       den_t = s w_t q_t . n + sum_j A_tj
//     h_t = (s w_t q_t C + sum_j A_tj v_j) / (max(|den_t|, exp(-M_t)) + eps)
//
// n follows C with 1 in place of v. Where `starts` (B, S) is not 0 a document starts: the state before that position
// counts as zero, m too, and sums and maxima begin there; `since_t` is where, see mlstm_first.
// Source: Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376.
#pragma once

#include "mlstm_shape.h"
#include "sigmoid.h"

namespace mlxhog {

enum : uint {
  kMlstmSimdgroups = kMlstmChunk / kMlstmLanes,
  kMlstmStateRows = 4,  // rows of C that a thread of mlstm_states keeps in registers
  kMlstmOutRows = 8,    // positions that a threadgroup of mlstm_out computes, a simdgroup each
  kMlstmOutKeys = kMlstmChunk * (kMlstmLanes + 1),
  kMlstmOutQueries = kMlstmOutRows * kMlstmLanes,
  kMlstmOutScores = kMlstmOutRows * kMlstmChunk,
  kMlstmOutTile = kMlstmOutKeys + kMlstmOutQueries + kMlstmOutScores,
};

// 1 + the position of the chunk where the document of its position t starts; 0 if that was before the chunk. `starts`
// is of the chunk.
inline int mlstm_since(const device int* starts, uint t) {
  for (uint j = t + 1; j > 0; --j)
    if (starts[j - 1] != 0) return int(j);
  return 0;
}

// Sum of lf from `first` to t of the chunk that begins at position `start`.
inline float mlstm_sum(const device float* f, MlstmShape s, uint head, uint start, uint first, uint t) {
  float sum = 0.0f;
  for (uint j = first; j <= t; ++j) sum += log_sigmoid(f[mlstm_row(s, head, start + j)]);
  return sum;
}

// A threadgroup per chunk, a thread per position. `totals` and `peaks` have kMlstmSimdgroups floats.
inline void mlstm_gates(const device float* i, const device float* f, const device int* starts, device float* b,
                        device float* a, device float* g, device float* amax, device int* since, MlstmShape s,
                        threadgroup float* totals, threadgroup float* peaks, uint3 tgid, uint3 lid) {
  const uint t = lid.x, lane = t % kMlstmLanes, mine = t / kMlstmLanes, c = tgid.y, head = tgid.z;
  const uint count = mlstm_count(s, c), simdgroups = (s.L + kMlstmLanes - 1) / kMlstmLanes, start = c * s.L;
  const bool inside = t < count;  // positions past the end add nothing to the sum and to the maximum
  const uint row = mlstm_row(s, head, start + (inside ? t : 0));
  const device int* own_starts = starts + head / s.NH * s.S + start;
  const int own = inside ? mlstm_since(own_starts, t) : 0, last = mlstm_since(own_starts, count - 1);

  float sum, all;
  if (last == 0) {
    all = 0.0f;
    sum = simd_prefix_inclusive_sum(inside ? log_sigmoid(f[row]) : 0.0f);
    if (lane == kMlstmLanes - 1 || t == s.L - 1) totals[mine] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint other = 0; other < simdgroups; ++other) {
      if (other == mine) sum += all;
      all += totals[other];
    }
  } else {  // no difference of sums that have those of other documents
    sum = inside ? mlstm_sum(f, s, head, start, mlstm_first(own), t) : 0.0f;
    all = mlstm_sum(f, s, head, start, mlstm_first(last), count - 1);
  }

  const float value = inside && own == last ? all - sum + i[row] : -1e30f;  // -inf could meet 0 * inf
  const float peak = simd_max(value);
  if (lane == 0) peaks[mine] = peak;
  threadgroup_barrier(mem_flags::mem_threadgroup);

  if (inside) {
    const uint at = head * s.S + start + t;
    b[at] = sum;
    a[at] = value;
    since[at] = own;
  }
  if (t == 0) {
    float highest = peak;
    for (uint other = 1; other < simdgroups; ++other) highest = max(highest, peaks[other]);
    const uint at = head * mlstm_chunks(s) + c;
    g[at] = all;
    amax[at] = highest;
  }
}

// A thread per column and kMlstmStateRows rows of C, which goes through the chunks; those of column 0 keep n.
inline void mlstm_states(const device float* k, const device float* v, const device float* a, const device float* g,
                         const device float* amax, const device int* since, const device float* C0,
                         const device float* n0, const device float* m0, device float* C, device float* n,
                         device float* m, MlstmShape s, uint3 id) {
  const uint column = id.x, first = id.y * kMlstmStateRows, head = id.z, NC = mlstm_chunks(s);
  if (column >= s.DV || first >= s.DK || head >= s.B * s.NH) return;
  const uint rows = min(uint(kMlstmStateRows), s.DK - first);
  float C_row[kMlstmStateRows], n_row[kMlstmStateRows], m_now = m0[head];
  for (uint r = 0; r < rows; ++r) {
    C_row[r] = C0[(head * s.DK + first + r) * s.DV + column];
    n_row[r] = n0[head * s.DK + first + r];
  }
  for (uint c = 0;; ++c) {
    const uint state = mlstm_state(s, head, c), keys = state * s.DK + first;
    for (uint r = 0; r < rows; ++r) {
      C[(keys + r) * s.DV + column] = C_row[r];
      if (column == 0) n[keys + r] = n_row[r];
    }
    if (column == 0 && first == 0) m[state] = m_now;
    if (c == NC) return;

    const uint count = mlstm_count(s, c);
    const int start = since[head * s.S + c * s.L + count - 1];
    if (start != 0) m_now = 0.0f;
    const float kept = g[head * NC + c] + m_now, m_next = max(kept, amax[head * NC + c]);
    const float decay = precise::exp(kept - m_next);
    for (uint r = 0; r < rows; ++r) {
      C_row[r] = start == 0 ? C_row[r] * decay : 0.0f;
      n_row[r] = start == 0 ? n_row[r] * decay : 0.0f;
    }
    for (uint j = mlstm_first(start); j < count; ++j) {
      const uint t = c * s.L + j, row = mlstm_row(s, head, t);
      const float weight = precise::exp(a[head * s.S + t] - m_next), value = v[row * s.DV + column];
      for (uint r = 0; r < rows; ++r) {
        const float key = weight * k[row * s.DK + first + r];
        C_row[r] += key * value;
        n_row[r] += key;
      }
    }
    m_now = m_next;
  }
}

// A threadgroup per kMlstmOutRows positions of a chunk and kMlstmLanes columns of h; a simdgroup per position, a thread
// per column. Keys and queries pass through `tile`, kMlstmOutTile floats, a strip of DK at a time; a thread scores
// the keys `lane`, `lane + 32`, .. den and M are kept for the backward pass.
inline void mlstm_out(const device float* q, const device float* k, const device float* v, const device float* b,
                      const device float* i, const device int* since, const device float* C, const device float* n,
                      const device float* m, device float* h, device float* den, device float* M, MlstmShape s,
                      float eps, threadgroup float* tile, uint3 tgid, uint3 lid) {
  threadgroup float* keys = tile;                         // a row per key, one float apart from a power of 2
  threadgroup float* queries = keys + kMlstmOutKeys;     // a row per position
  threadgroup float* scores = queries + kMlstmOutQueries;
  const uint lane = lid.x, slot = lid.y, NC = mlstm_chunks(s);
  const uint head = tgid.z / NC, c = tgid.z % NC, start = c * s.L, count = mlstm_count(s, c);
  if (tgid.y * kMlstmOutRows >= count) return;  // the whole threadgroup, past the end
  const uint t = tgid.y * kMlstmOutRows + slot, column = tgid.x * kMlstmLanes + lane;
  const bool inside = t < count, writes = inside && column < s.DV;
  const uint row = mlstm_row(s, head, start + (inside ? t : 0)), position = head * s.S + start;
  const uint state = mlstm_state(s, head, c) * s.DK;
  const float scale = mlstm_scale(s), b_t = b[position + (inside ? t : 0)];
  const int begin = since[position + (inside ? t : 0)];
  const uint first = mlstm_first(begin);
  const bool reads_state = begin == 0;

  // Differences first: i_t and values near it enter M_t exactly, also if b_t is large.
  const float D_state = b_t + (reads_state ? m[mlstm_state(s, head, c)] : 0.0f);
  float top = D_state;
  for (uint j = lane; j < count && j <= t; j += kMlstmLanes)
    if (j >= first) top = max(top, b_t - b[position + j] + i[mlstm_row(s, head, start + j)]);
  top = simd_max(top);

  float score[kMlstmSimdgroups] = {}, num = 0.0f, q_n = 0.0f;
  for (uint strip = 0; strip < s.DK; strip += kMlstmLanes) {
    const uint width = min(uint(kMlstmLanes), s.DK - strip), d = strip + lane;
    if (lane < width) {
      for (uint j = slot; j < count; j += kMlstmOutRows)
        keys[j * (kMlstmLanes + 1) + lane] = k[mlstm_row(s, head, start + j) * s.DK + d];
      queries[slot * kMlstmLanes + lane] = inside ? q[row * s.DK + d] : 0.0f;
      if (inside) q_n += q[row * s.DK + d] * n[state + d];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint e = 0; e < width; ++e) {
      const float query = queries[slot * kMlstmLanes + e];
      for (uint p = 0; p < kMlstmSimdgroups; ++p) {
        const uint j = lane + p * kMlstmLanes;
        if (j < count) score[p] += query * keys[j * (kMlstmLanes + 1) + e];
      }
      if (writes) num += query * C[(state + strip + e) * s.DV + column];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  const float from_state = scale * precise::exp(D_state - top), all_q_n = simd_sum(q_n);
  float score_sum = 0.0f;
  for (uint p = 0; p < kMlstmSimdgroups; ++p) {
    const uint j = lane + p * kMlstmLanes;
    if (j >= count || j > t || j < first) continue;
    score[p] *= scale * precise::exp(b_t - b[position + j] + i[mlstm_row(s, head, start + j)] - top);
    score_sum += score[p];
    scores[slot * kMlstmChunk + j] = score[p];
  }
  const float denominator = (reads_state ? from_state * all_q_n : 0.0f) + simd_sum(score_sum);
  simdgroup_barrier(mem_flags::mem_threadgroup);  // a row of scores stays in its simdgroup
  if (!writes) return;

  num = reads_state ? num * from_state : 0.0f;  // a state of another document may not be finite
  for (uint j = first; j <= t; ++j)
    num += scores[slot * kMlstmChunk + j] * v[mlstm_row(s, head, start + j) * s.DV + column];
  h[row * s.DV + column] = num / (max(fabs(denominator), precise::exp(-top)) + eps);
  if (column == 0) {
    den[position + t] = denominator;
    M[position + t] = top;
  }
}

}  // namespace mlxhog
