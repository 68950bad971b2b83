// Gradients of the mLSTM cell, with
//
//     u_t = dh_t / N_t           N_t = max(|den_t|, exp(-M_t)) + eps            w_t = exp(b_t + m - M_t)
//     e_t = dL/d den_t           E_tj = exp(b_t - b_j + i_j - M_t), j <= t      y_j = exp(g - b_j + i_j - m')
//     X_tj = s E_tj (u_t . v_j + e_t)                  Z_tj = X_tj (q_t . k_j)                  s = DK^-1/2
//
// and dC', dn' the gradients of the state after the chunk:
//
//     dC = exp(g + m - m') dC' + sum_t s w_t q_t u_t^T                          mlstm_bwd_states
//     zq_t = sum_{j<t} Z_tj - sum_{t'>t} Z_t't         zk_j = sum_t Z_tj        mlstm_bwd_scores
//     dq_t = sum_j X_tj k_j + s w_t (C u_t + n e_t)                             mlstm_bwd_out
//     dk_j = sum_t X_tj q_t + y_j (dC' v_j + dn')
//     dv_j = sum_t s E_tj (q_t . k_j) u_t + y_j dC'^T k_j
//     di_j = zk_j + r_j                                                         r_j = y_j k_j . (dC' v_j + dn')
//     db_t = zq_t - r_t + s w_t q_t . (C u_t + n e_t)
//
// dn is dC with e_t in place of u_t^T. These hold the stabilizers m and M constant; h depends on M only through eps,
// dM_t = -(dh_t . h_t) eps / N_t. The sum g = b_L also has all that the state after the chunk depends on, <C', dC'> +
// n' . dn'. `models/ops/metal/cells.py` says what follows from both. Z_tt counts in zk alone: where the gates forget
// all, the rest is far smaller than it. Weights of pairs of two documents, and of the states of other documents, are 0.
//
// All sums over more than a position are products of tiles, `tiles.h`, in which a chunk is kTileRows positions. Weights
// with an exponential are computed once: y and decay by the forward pass, the others of a position by mlstm_bwd_pre,
// those of a pair by mlstm_bwd_scores.
//
// What bounds it: the matrices, B NH S (L (3 DK + 2 DV) + 5 DK DV) multiply-adds, of which DK DV compute the states anew,
// segment by segment from the last. Memory, trade and seam are those of mlstm.h.
#pragma once

#include "mlstm.h"

namespace mlxhog {

enum : uint {
  kMlstmScoreSums = (2 + kTileSimdgroups) * kTileRows,  // floats that mlstm_bwd_scores shares
  kMlstmRowSums = 2 * kTileRows,                        // and mlstm_bwd_out
};

// A simdgroup per position: rN = 1 / N_t, dden = e_t, dM, and the weights of the states wN = s w_t / N_t and
// we = s w_t e_t.
template <typename R>
inline void mlstm_bwd_pre(const device float* b, const device int* since, const device float* m,
                          const device float* den, const device float* M, const device R* h,
                          const device R* dh, device float* rN, device float* dden, device float* dM,
                          device float* wN, device float* we, MlstmShape s, float eps, uint3 id) {
  const uint lane = id.x, t = id.y, head = id.z;
  if (t >= s.S) return;  // the whole simdgroup
  const uint at = head * s.S + t, row = mlstm_row(s, head, t);
  float dot = 0.0f;
  for (uint d = lane; d < s.DV; d += kMlstmLanes)
    dot += static_cast<float>(dh[row * s.DV + d]) * static_cast<float>(h[row * s.DV + d]);
  dot = simd_sum(dot);
  if (lane != 0) return;
  const float denominator = den[at], magnitude = fabs(denominator), bound = precise::exp(-M[at]);
  const float inverse = 1.0f / (max(magnitude, bound) + eps);
  const float e = magnitude > bound ? -copysign(inverse, denominator) * dot : 0.0f;
  const float before = m[mlstm_border(s, head, t / s.L)];
  const float weight = since[at] == 0 ? mlstm_scale(s) * precise::exp(b[at] + before - M[at]) : 0.0f;
  rN[at] = inverse;
  dden[at] = e;
  dM[at] = -eps * inverse * dot;
  wN[at] = weight * inverse;
  we[at] = weight * e;
}

// A threadgroup per kTileRows rows and kTileColumns columns of dC, which stay in its registers while it goes through
// the chunks of a segment from the last to the first: from dC_end, of the state behind the segment, to dC0, of the one
// before it. dC has the gradients of the states behind its chunks; threadgroups of column 0 keep dn. `dots` are parts
// of <C, dC> + n . dn of the states before its chunks, one of each simdgroup. `tiles` has kTileFloats floats.
template <typename R>
inline void mlstm_bwd_states(const device R* q, const device float* decay, const device float* wN,
                             const device float* we, const device R* dh, const device float* C,
                             const device float* n, const device float* dC_end, const device float* dn_end,
                             device float* dC, device float* dn, device float* dC0, device float* dn0,
                             device float* dots, MlstmShape s, threadgroup float* tiles, uint3 tgid, uint3 lid) {
  const uint lane = lid.x, simdgroup = lid.y, own = simdgroup * kTileOwnRows, head = tgid.z;
  const uint first = tgid.y * kTileRows, column = tgid.x * kTileColumns, d = first + simdgroup * kTileLanes + lane;
  const bool keeps_dn = column == 0 && d < min(s.DK, first + kTileRows);
  float dn_now = keeps_dn ? dn_end[head * s.DK + d] : 0.0f;
  const uint corner = first * s.DV + column, rows = s.DK - first, columns = s.DV - column;
  const uint across = (s.DV + kTileColumns - 1) / kTileColumns, down = (s.DK + kTileRows - 1) / kTileRows;
  TilePart sum;
  tile_read(sum, {dC_end + head * s.DK * s.DV + corner, nullptr, s.DV, rows, columns}, tiles, simdgroup, lane);
  for (uint c = s.FIRST + s.NS;; --c) {  // the state before chunk c
    const bool begins = c == s.FIRST, ends = c == s.FIRST + s.NS;
    const uint after = (begins ? head : mlstm_state(s, head, c - 1)) * s.DK;
    const uint state = (ends ? 0 : mlstm_state(s, head, c)) * s.DK;
    device float* to = (begins ? dC0 : dC) + after * s.DV + corner;
    float dot = 0.0f;
    tile_store(sum, tiles, simdgroup);
    for (uint r = own; r < own + kTileOwnRows; ++r) {
      if (r >= rows || lane >= columns) continue;
      const float gradient = tiles[r * kTileStride + lane];
      to[r * s.DV + lane] = gradient;
      if (!ends) dot += gradient * C[state * s.DV + corner + r * s.DV + lane];
    }
    if (keeps_dn) {
      (begins ? dn0 : dn)[after + d] = dn_now;
      if (!ends) dot += dn_now * n[state + d];
    }
    dot = simd_sum(dot);
    if (lane == 0 && !ends)
      dots[((mlstm_state(s, head, c) * down + tgid.y) * across + tgid.x) * kTileSimdgroups + simdgroup] = dot;
    if (begins) return;

    const uint start = (c - 1) * s.L, count = mlstm_count(s, c - 1), position = head * s.S + start;
    const uint row = mlstm_row(s, head, start);
    const float factor = decay[head * mlstm_chunks(s) + c - 1];
    tile_scale(sum, factor);
    dn_now *= factor;
    if (keeps_dn)
      for (uint t = 0; t < count; ++t) dn_now += we[position + t] * static_cast<float>(q[(row + t * s.NH) * s.DK + d]);
    const TileMatrix<R> queries = {q + row * s.DK + first, wN + position, s.NH * s.DK, count, rows};
    const TileMatrix<R> gradients = {dh + row * s.DV + column, nullptr, s.NH * s.DV, count, columns};
    tile_add_product<true, false>(sum, queries, gradients, count, tiles, simdgroup, lane);
  }
}

// A threadgroup per chunk: X_tj and A_tj = s E_tj (q_t . k_j) / N_t of its pairs, (B, NH, S, L), 0 where j > t, and
// their sums zq and zk. `tiles` has kTileFloats floats, `sums` kMlstmScoreSums.
template <typename R>
inline void mlstm_bwd_scores(const device R* q, const device R* k, const device R* v,
                             const device float* i, const device float* b, const device int* since,
                             const device float* M, const device float* rN, const device float* dden,
                             const device R* dh, device float* X, device float* A, device float* zq,
                             device float* zk, MlstmShape s, threadgroup float* tiles, threadgroup float* sums,
                             uint3 tgid, uint3 lid) {
  const uint lane = lid.x, simdgroup = lid.y, own = simdgroup * kTileOwnRows;
  const uint NC = mlstm_chunks(s), head = tgid.z / NC, c = tgid.z % NC, start = c * s.L, count = mlstm_count(s, c);
  const uint position = head * s.S + start, row = mlstm_row(s, head, start);
  const float scale = mlstm_scale(s);
  threadgroup float* before = sums;  // of each position, over the keys before it
  threadgroup float* diagonal = before + kTileRows;
  threadgroup float* after = diagonal + kTileRows;  // of each key, over a simdgroup's positions after it
  if (lane < kTileOwnRows) before[own + lane] = 0.0f;
  const TileMatrix<R> queries = {q + row * s.DK, nullptr, s.NH * s.DK, count, s.DK};
  const TileMatrix<R> gradients = {dh + row * s.DV, nullptr, s.NH * s.DV, count, s.DV};
  for (uint first = 0; first < s.L; first += kTileColumns) {
    const uint j = first + lane, keys = count - min(count, first), key_row = row + first * s.NH;
    TilePart sum;
    tile_zero(sum);
    const TileMatrix<R> some_keys = {k + key_row * s.DK, nullptr, s.NH * s.DK, keys, s.DK};
    tile_add_product<false, true>(sum, queries, some_keys, s.DK, tiles, simdgroup, lane);
    tile_store(sum, tiles, simdgroup);
    float q_k[kTileOwnRows];  // in registers, as the loops that index it are unrolled
#pragma clang loop unroll(full)
    for (uint r = 0; r < kTileOwnRows; ++r) q_k[r] = tiles[(own + r) * kTileStride + lane];
    tile_zero(sum);
    const TileMatrix<R> some_values = {v + key_row * s.DV, nullptr, s.NH * s.DV, keys, s.DV};
    tile_add_product<false, true>(sum, gradients, some_values, s.DV, tiles, simdgroup, lane);
    tile_store(sum, tiles, simdgroup);

    const float b_j = j < count ? b[position + j] : 0.0f, i_j = j < count ? i[row + j * s.NH] : 0.0f;
    float later = 0.0f;
#pragma clang loop unroll(full)
    for (uint r = 0; r < kTileOwnRows; ++r) {
      const uint t = own + r;
      float X_tj = 0.0f, A_tj = 0.0f, Z_tj = 0.0f;
      if (t < count && j <= t && j >= mlstm_first(since[position + t])) {
        const float weight = scale * precise::exp(b[position + t] - b_j + i_j - M[position + t]);
        const float inverse = rN[position + t];
        X_tj = weight * (tiles[t * kTileStride + lane] * inverse + dden[position + t]);
        A_tj = weight * q_k[r] * inverse;
        Z_tj = X_tj * q_k[r];
      }
      if (t < count && j < s.L) {
        X[(position + t) * s.L + j] = X_tj;
        A[(position + t) * s.L + j] = A_tj;
      }
      const float earlier = simd_sum(j < t ? Z_tj : 0.0f);
      if (lane == 0) before[t] += earlier;
      if (j < t) later += Z_tj;
      if (j == t) diagonal[t] = Z_tj;
    }
    after[simdgroup * kTileRows + j] = later;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // all sums are written
  const uint j = simdgroup * kTileLanes + lane;
  if (j >= count) return;
  float later = 0.0f;
  for (uint other = 0; other < kTileSimdgroups; ++other) later += after[other * kTileRows + j];
  zq[position + j] = before[j] - later;
  zk[position + j] = later + diagonal[j];
}

// The part of mlstm_bwd_out that dq and dk have in common, with P = X for dq and its transpose for dk:
//
//     d_mine_t = sum_j P_tj other_j + from_state_t         from_state = part state^T + factor vector^T
//
// Adds mine_t . from_state_t to `dots`, of the simdgroup's own positions; the barriers of the second product are
// behind.
template <bool kOfKeys, typename R>
inline void mlstm_bwd_rows(TileMatrix<R> part, const device float* state, const device float* factor,
                           const device float* vector, TileMatrix<float> pairs, const device R* other,
                           const device R* mine, device R* d_mine, MlstmShape s, threadgroup float* tiles,
                           threadgroup float* dots, uint simdgroup, uint lane) {
  const uint own = simdgroup * kTileOwnRows, count = part.rows, stride = s.NH * s.DK;
  if (lane < kTileOwnRows) dots[own + lane] = 0.0f;
  for (uint first = 0; first < s.DK; first += kTileColumns) {
    const uint d = first + lane;
    const float vector_d = d < s.DK ? vector[d] : 0.0f;
    TilePart sum;
    tile_zero(sum);
    const TileMatrix<float> rows = {state + first * s.DV, nullptr, s.DV, s.DK - first, s.DV};
    tile_add_product<false, true>(sum, part, rows, s.DV, tiles, simdgroup, lane);
    tile_store(sum, tiles, simdgroup);
    for (uint t = own; t < own + kTileOwnRows; ++t) {
      float dot = 0.0f;
      if (t < count && d < s.DK) {
        const float from_state = tiles[t * kTileStride + lane] + factor[t] * vector_d;
        dot = static_cast<float>(mine[t * stride + d]) * from_state;
      }
      dot = simd_sum(dot);
      if (lane == 0) dots[t] += dot;
    }
    const TileMatrix<R> others = {other + first, nullptr, stride, count, s.DK - first};
    tile_add_product<kOfKeys, false>(sum, pairs, others, count, tiles, simdgroup, lane);
    tile_store(sum, tiles, simdgroup);
    for (uint t = own; t < own + kTileOwnRows; ++t)
      if (t < count && d < s.DK)
        d_mine[t * stride + d] = static_cast<R>(tiles[t * kTileStride + lane] + factor[t] * vector_d);
  }
}

// Two threadgroups per chunk of a segment: the first for dq, dk and the gates, the second for dv. `tiles` has
// kTileFloats floats, `sums` kMlstmRowSums.
template <typename R>
inline void mlstm_bwd_out(const device R* q, const device R* k, const device R* v, const device float* C,
                          const device float* n, const device float* wN, const device float* we,
                          const device float* y, const device float* X, const device float* A, const device float* zq,
                          const device float* zk, const device R* dh, const device float* dC,
                          const device float* dn, device R* dq_part, device R* dk_part, device R* dv_part,
                          device float* di_part, device float* db_part, MlstmShape s,
                          threadgroup float* tiles, threadgroup float* sums, uint3 tgid, uint3 lid) {
  const uint lane = lid.x, simdgroup = lid.y, own = simdgroup * kTileOwnRows;
  const uint head = tgid.z / s.NS, c = s.FIRST + tgid.z % s.NS, start = c * s.L, count = mlstm_count(s, c);
  const uint position = head * s.S + start, row = mlstm_row(s, head, start), q_row = row * s.DK, v_row = row * s.DV;
  const uint state = mlstm_state(s, head, c) * s.DK, width = s.NH * s.DV, to = mlstm_segment_row(s, head, start);
  const device float* dC_after = dC + state * s.DV;
  if (tgid.x == 0) {
    threadgroup float* of_queries = sums;
    threadgroup float* of_keys = sums + kTileRows;
    const TileMatrix<float> pairs = {X + position * s.L, nullptr, s.L, count, count};
    const TileMatrix<R> gradients = {dh + v_row, wN + position, width, count, s.DV};
    mlstm_bwd_rows<false>(gradients, C + state * s.DV, we + position, n + state, pairs, k + q_row, q + q_row,
                          dq_part + to * s.DK, s, tiles, of_queries, simdgroup, lane);
    const TileMatrix<R> values = {v + v_row, y + position, width, count, s.DV};
    mlstm_bwd_rows<true>(values, dC_after, y + position, dn + state, pairs, q + q_row, k + q_row,
                         dk_part + to * s.DK, s, tiles, of_keys, simdgroup, lane);
    const uint t = own + lane;
    if (lane >= kTileOwnRows || t >= count) return;
    di_part[to + t * s.NH] = zk[position + t] + of_keys[t];
    db_part[head * mlstm_length(s) + start - mlstm_start(s) + t] = zq[position + t] - of_keys[t] + of_queries[t];
    return;
  }
  const TileMatrix<R> keys = {k + q_row, y + position, s.NH * s.DK, count, s.DK};
  const TileMatrix<float> pairs = {A + position * s.L, nullptr, s.L, count, count};
  for (uint first = 0; first < s.DV; first += kTileColumns) {
    TilePart sum;
    tile_zero(sum);
    const TileMatrix<float> columns = {dC_after + first, nullptr, s.DV, s.DK, s.DV - first};
    tile_add_product<false, false>(sum, keys, columns, s.DK, tiles, simdgroup, lane);
    const TileMatrix<R> gradients = {dh + v_row + first, nullptr, width, count, s.DV - first};
    tile_add_product<true, false>(sum, pairs, gradients, count, tiles, simdgroup, lane);
    tile_store(sum, tiles, simdgroup);
    device R* dv = dv_part + to * s.DV + first;
    for (uint t = own; t < own + kTileOwnRows; ++t)
      if (t < count && first + lane < s.DV) dv[t * width + lane] = static_cast<R>(tiles[t * kTileStride + lane]);
  }
}

}  // namespace mlxhog
