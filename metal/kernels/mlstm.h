// The mLSTM cell, chunk by chunk. Within a chunk, with lf = logsig(f), positions t = 1..L and the state
// C, n, m before the chunk:
//
//     b_t = lf_1 + .. + lf_t      g = b_L      a_t = g - b_t + i_t                              mlstm_gates
//     m' = max(g + m, max a)      y_t = exp(a_t - m')     decay = exp(g + m - m')               mlstm_weights
//     C' = decay C + sum_t y_t k_t v_t^T                                                        mlstm_states
//     M_t = max(b_t + m, max_{j<=t} (b_t - b_j + i_j))      w_t = exp(b_t + m - M_t)            mlstm_out
//     A_tj = s (q_t . k_j) exp(b_t - b_j + i_j - M_t)       den_t = s w_t q_t . n + sum_j A_tj
//     h_t = (s w_t q_t C + sum_j A_tj v_j) / (max(|den_t|, exp(-M_t)) + eps)
//
// n follows C with 1 in place of v. Where `starts` (B, S) is not 0 a document starts: the state before that position
// counts as zero, m too, and sums and maxima begin there; `since_t` is where, see mlstm_first.
//
// What bounds it: the matrices, B NH S (L (DK + DV) + 2 DK DV) multiply-adds. Scores are computed once for the whole
// width of the values. Exponentials are one per position and one per chunk for the states, one per pair of a chunk for
// the scores, and three per position for the gates and h (counted in tests/metal/kernels/test_counts.py). Serial are the
// NC chunks, in mlstm_states, whose threadgroups are B NH DK DV / 2048. Most bytes are those of C, which is written and
// read once; only the states of a segment exist (mlstm.py).
// The trade: a threadgroup of 128 threads computes 64 positions x 32 columns at a time in 14 KiB of threadgroup memory,
// so two or more share a core; scores take 32 registers of a thread instead of 17 KiB. In return tiles are not double
// buffered, and queries are loaded again for every 32 columns.
// q, k, v, h and their gradients have the type R, float or bfloat; tiles, sums, gates and states are float.
// The seam for the tensor operations of Metal 4 (M5) is tiles.h: `tile_add_product` would be a matmul2d of a threadgroup
// and `TilePart` its cooperative tensor.
// Source: Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376.
#pragma once

#include "mlstm_shape.h"
#include "sigmoid.h"
#include "tiles.h"

namespace mlxhog {

enum : uint {
  kMlstmSimdgroups = kMlstmChunk / kMlstmLanes,
  kMlstmOutSums = 3 * kTileRows,  // floats that mlstm_out shares
};
static_assert(uint(kMlstmChunk) == uint(kTileRows), "a chunk is as many positions as a tile has rows");

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

// A thread per position of a chunk, which goes through the chunks: m of every border, the weights y of every position
// in the state after its chunk, 0 where another document starts behind it, and the decay of the state over every chunk,
// 0 where a document starts in it.
inline void mlstm_weights(const device float* a, const device float* g, const device float* amax,
                          const device int* since, const device float* m0, device float* y, device float* decay,
                          device float* m, MlstmShape s, uint3 id) {
  const uint t = id.x, head = id.z, NC = mlstm_chunks(s);
  float m_now = m0[head];
  for (uint c = 0; c < NC; ++c) {
    const uint count = mlstm_count(s, c), position = head * s.S + c * s.L;
    const bool carries = since[position + count - 1] == 0;
    const float kept = g[head * NC + c] + (carries ? m_now : 0.0f), m_next = max(kept, amax[head * NC + c]);
    if (t < count) y[position + t] = precise::exp(a[position + t] - m_next);
    if (t == 0) {
      m[mlstm_border(s, head, c)] = m_now;
      decay[head * NC + c] = carries ? precise::exp(kept - m_next) : 0.0f;
    }
    m_now = m_next;
  }
  if (t == 0) m[mlstm_border(s, head, NC)] = m_now;
}

// A threadgroup per kTileRows rows and kTileColumns columns of C, which stay in its registers while it goes through the
// chunks of a segment, from C0 before it to C_end behind it. C has the states before its chunks; threadgroups of
// column 0 keep n. `tiles` has kTileFloats floats.
template <typename R>
inline void mlstm_states(const device R* k, const device R* v, const device float* y,
                         const device float* decay, const device float* C0, const device float* n0, device float* C,
                         device float* n, device float* C_end, device float* n_end, MlstmShape s,
                         threadgroup float* tiles, uint3 tgid, uint3 lid) {
  const uint lane = lid.x, simdgroup = lid.y, own = simdgroup * kTileOwnRows, head = tgid.z;
  const uint first = tgid.y * kTileRows, column = tgid.x * kTileColumns, d = first + simdgroup * kTileLanes + lane;
  const bool keeps_n = column == 0 && d < min(s.DK, first + kTileRows);
  float n_now = keeps_n ? n0[head * s.DK + d] : 0.0f;
  const uint corner = first * s.DV + column, rows = s.DK - first, columns = s.DV - column;
  TilePart sum;
  tile_read(sum, {C0 + head * s.DK * s.DV + corner, nullptr, s.DV, rows, columns}, tiles, simdgroup, lane);
  for (uint c = s.FIRST;; ++c) {
    const bool ends = c == s.FIRST + s.NS;
    const uint state = (ends ? head : mlstm_state(s, head, c)) * s.DK;
    device float* to = (ends ? C_end : C) + state * s.DV + corner;
    tile_store(sum, tiles, simdgroup);
    for (uint r = own; r < own + kTileOwnRows; ++r)
      if (r < rows && lane < columns) to[r * s.DV + lane] = tiles[r * kTileStride + lane];
    if (keeps_n) (ends ? n_end : n)[state + d] = n_now;
    if (ends) return;

    const uint start = c * s.L, count = mlstm_count(s, c), position = head * s.S + start;
    const uint row = mlstm_row(s, head, start);
    const float factor = decay[head * mlstm_chunks(s) + c];
    tile_scale(sum, factor);
    n_now = factor == 0.0f ? 0.0f : factor * n_now;  // a state of another document may not be finite
    if (keeps_n)
      for (uint t = 0; t < count; ++t) n_now += y[position + t] * static_cast<float>(k[(row + t * s.NH) * s.DK + d]);
    const TileMatrix<R> keys = {k + row * s.DK + first, y + position, s.NH * s.DK, count, rows};
    const TileMatrix<R> values = {v + row * s.DV + column, nullptr, s.NH * s.DV, count, columns};
    tile_add_product<true, false>(sum, keys, values, count, tiles, simdgroup, lane);
  }
}

// A threadgroup per chunk of a segment and W columns of h. The scores of its pairs, computed once, stay in registers as
// the left factors of their product with the values; den and M are kept for the backward pass. `tiles` has kTileFloats
// floats, `sums` kMlstmOutSums.
template <typename R>
inline void mlstm_out(const device R* q, const device R* k, const device R* v, const device float* b,
                      const device float* i, const device int* since, const device float* m, const device float* C,
                      const device float* n, device R* h_part, device float* den_part, device float* M_part,
                      MlstmShape s, uint W, float eps, threadgroup float* tiles, threadgroup float* sums, uint3 tgid,
                      uint3 lid) {
  const uint lane = lid.x, simdgroup = lid.y, own = simdgroup * kTileOwnRows;
  const uint head = tgid.z / s.NS, c = s.FIRST + tgid.z % s.NS, start = c * s.L, count = mlstm_count(s, c);
  const uint position = head * s.S + start, row = mlstm_row(s, head, start), state = mlstm_state(s, head, c) * s.DK;
  const float scale = mlstm_scale(s);
  threadgroup float* top = sums;  // M of each position; then 1 / N
  threadgroup float* den = top + kTileRows;
  threadgroup float* from_state = den + kTileRows;  // s w_t

  // Differences first: i_t and values near it enter M_t exactly, also if b_t is large.
  for (uint t = own; t < min(own + kTileOwnRows, count); ++t) {
    const int begin = since[position + t];
    const float b_t = b[position + t], before = b_t + (begin == 0 ? m[mlstm_border(s, head, c)] : 0.0f);
    float highest = before, q_n = 0.0f;
    for (uint j = mlstm_first(begin) + lane; j <= t; j += kTileLanes)
      highest = max(highest, b_t - b[position + j] + i[row + j * s.NH]);
    for (uint d = lane; d < s.DK; d += kTileLanes) q_n += static_cast<float>(q[(row + t * s.NH) * s.DK + d]) * n[state + d];
    highest = simd_max(highest);
    q_n = simd_sum(q_n);
    if (lane != 0) continue;
    from_state[t] = before - highest;
    top[t] = highest;
    den[t] = q_n;
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  const uint mine = own + lane;
  const bool owns = lane < kTileOwnRows && mine < count;
  if (owns) {
    const float weight = since[position + mine] == 0 ? scale * precise::exp(from_state[mine]) : 0.0f;
    from_state[mine] = weight;
    den[mine] = weight == 0.0f ? 0.0f : weight * den[mine];  // a state of another document may not be finite
  }

  TilePart scores[2];
  const TileMatrix<R> queries = {q + row * s.DK, nullptr, s.NH * s.DK, count, s.DK};
#pragma clang loop unroll(full)
  for (uint part = 0; part < 2; ++part) {
    const uint first = part * kTileColumns, j = first + lane;
    tile_zero(scores[part]);
    if (first >= count) continue;
    const TileMatrix<R> keys = {k + (row + first * s.NH) * s.DK, nullptr, s.NH * s.DK, count - first, s.DK};
    tile_add_product<false, true>(scores[part], queries, keys, s.DK, tiles, simdgroup, lane);
    tile_store(scores[part], tiles, simdgroup);
    const float b_j = j < count ? b[position + j] : 0.0f, i_j = j < count ? i[row + j * s.NH] : 0.0f;
    for (uint t = own; t < own + kTileOwnRows; ++t) {
      float score = 0.0f;
      if (t < count && j <= t && j >= mlstm_first(since[position + t]))
        score = tiles[t * kTileStride + lane] * (scale * precise::exp(b[position + t] - b_j + i_j - top[t]));
      tiles[t * kTileStride + lane] = score;
      const float sum = simd_sum(score);
      if (lane == 0 && t < count) den[t] += sum;
    }
    tile_load(scores[part], tiles, simdgroup);
  }
  if (owns) {
    const float denominator = den[mine], highest = top[mine];
    if (tgid.x == 0) {
      const uint at = head * mlstm_length(s) + start - mlstm_start(s) + mine;
      den_part[at] = denominator;
      M_part[at] = highest;
    }
    top[mine] = 1.0f / (max(fabs(denominator), precise::exp(-highest)) + eps);
  }

  const uint width = s.NH * s.DV, end = min(s.DV, (tgid.x + 1) * W);
  for (uint column = tgid.x * W; column < end; column += kTileColumns) {
    TilePart sum;
    tile_zero(sum);
    const TileMatrix<float> columns = {C + state * s.DV + column, nullptr, s.DV, s.DK, s.DV - column};
    tile_add_product<false, false>(sum, queries, columns, s.DK, tiles, simdgroup, lane);
    tile_store(sum, tiles, simdgroup);
    float q_C[kTileOwnRows];  // in registers, as the loops that index it are unrolled
#pragma clang loop unroll(full)
    for (uint r = 0; r < kTileOwnRows; ++r) q_C[r] = tiles[(own + r) * kTileStride + lane];
    tile_zero(sum);
    const TileMatrix<R> values = {v + row * s.DV + column, nullptr, width, count, s.DV - column};
    tile_add_lower_product(sum, scores, values, count, tiles, simdgroup, lane);
    tile_store(sum, tiles, simdgroup);
    device R* h = h_part + mlstm_segment_row(s, head, start) * s.DV + column;
#pragma clang loop unroll(full)
    for (uint r = 0; r < kTileOwnRows; ++r) {
      const uint t = own + r;
      if (t >= count || column + lane >= s.DV) continue;
      const float weight = from_state[t], carried = weight == 0.0f ? 0.0f : weight * q_C[r];
      h[t * width + lane] = static_cast<R>((carried + tiles[t * kTileStride + lane]) * top[t]);
    }
  }
}

}  // namespace mlxhog
