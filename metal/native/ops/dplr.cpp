#include "dplr.h"

#include <algorithm>
#include <utility>

#include "delta_heads.h"
#include "lanes.h"

namespace mlxhog {
namespace {

// One chunk's inputs of one head, rows of whole lanes (the rest is 0): those of a key's width (L, PK) with a row of
// zeros before and after, for which w is 1.
struct Chunk : ChunkRows {
  enum Row { kQ, kK, kW, kRead, kRemoval, kCount };

  Index length;
  Buffer rows;

  explicit Chunk(const DeltaShape& s)
      : ChunkRows(s), length((s.chunk() + 2) * PK), rows(uninitialised(kCount * length)) {}

  const float* row(Row of, Index t) const { return &rows[of * length + (t + 1) * PK]; }

  void load_inputs(const DeltaShape& s, const DplrInputs& in, Index b, Index head, Index c) {
    L = std::min(s.chunk(), s.S - c * s.chunk());
    const Index first = (b * s.S + c * s.chunk()) * s.NH + head;
    const float* inputs[kCount] = {in.q, in.k, in.log_decay, in.read, in.removal};
    for (Index i = 0; i < kCount; ++i) {
      float* to = &rows[i * length];
      std::fill_n(to, PK, 0.0f);
      copy_rows(L, s.DK, inputs[i] + first * s.DK, s.NH * s.DK, to + PK, PK, PK);
      std::fill_n(to + (L + 1) * PK, PK, 0.0f);
    }
    exponentials(&rows[kW * length], (L + 2) * PK);
    load_columns(s, in.v, first, v.get());
  }

 private:
  MLXHOG_CLONES static void exponentials(float* x, Index count) {
#pragma omp simd
    for (Index i = 0; i < count; ++i) x[i] = exp_f32(x[i]);
  }
};

// Sixteen columns of S (PK, PV) over a chunk: h and held (L, PV). The pass that writes a position also reads the
// values of the next key.
MLXHOG_CLONES void advance(const Chunk& c, Index DK, Index column, float* S, float* h, float* held) {
  Lanes found = {};
  for (Index d = 0; d < DK; ++d) {
    Lanes s;
    load(S + d * c.PV + column, s);
    found += c.row(Chunk::kRead, 0)[d] * s;
  }
  for (Index t = 0; t < c.L; ++t) {
    const float *q = c.row(Chunk::kQ, t), *k = c.row(Chunk::kK, t), *w = c.row(Chunk::kW, t);
    const float *removal = c.row(Chunk::kRemoval, t), *next = c.row(Chunk::kRead, t + 1);
    Lanes value;
    load(&c.v[t * c.PV + column], value);
    store(found, held + t * c.PV + column);
    Lanes sums[2] = {}, finds[2] = {};
    for (Index d = 0; d < DK; d += 2)  // rows come in pairs: the last of an odd number is 0
      for (Index i = 0; i < 2; ++i) {
        Lanes s;
        load(S + (d + i) * c.PV + column, s);
        s = w[d + i] * s - removal[d + i] * found + k[d + i] * value;
        sums[i] += q[d + i] * s;
        finds[i] += next[d + i] * s;
        store(s, S + (d + i) * c.PV + column);
      }
    store(sums[0] + sums[1], h + t * c.PV + column);
    found = finds[0] + finds[1];
  }
}

// Sixteen columns of dS (PK, PV) back over a chunk: the gradients dv of written and dx of read values, (L, PV).
MLXHOG_CLONES void retreat(const Chunk& c, Index DK, Index column, float* dS, float* dv, float* dx) {
  Lanes change = {};
  for (Index t = c.L; t >= 0; --t) {
    // From after position t to before it, and to after position t - 1; at the ends one of the two changes nothing.
    const float *w = c.row(Chunk::kW, t), *read = c.row(Chunk::kRead, t);
    const float *q = c.row(Chunk::kQ, t - 1), *k = c.row(Chunk::kK, t - 1), *removal = c.row(Chunk::kRemoval, t - 1);
    Lanes dh = {}, values[2] = {}, finds[2] = {};
    if (t > 0) load(&c.dh[(t - 1) * c.PV + column], dh);
    for (Index d = 0; d < DK; d += 2)
      for (Index i = 0; i < 2; ++i) {
        Lanes s;
        load(dS + (d + i) * c.PV + column, s);
        s = w[d + i] * s + read[d + i] * change + q[d + i] * dh;
        values[i] += k[d + i] * s;
        finds[i] += removal[d + i] * s;
        store(s, dS + (d + i) * c.PV + column);
      }
    if (t == 0) return;
    change = -(finds[0] + finds[1]);
    store(values[0] + values[1], dv + (t - 1) * c.PV + column);
    store(change, dx + (t - 1) * c.PV + column);
  }
}

// The gradients of a chunk's rows, (L, PK) each.
struct RowSums {
  Buffer q, k, log_decay, read, removal;
};

// The same of transposed states, S_T before the chunk and dS_T after it (columns, PK), for four columns and sixteen
// rows, with dx known. Adds to the sums over columns. `history` holds (L + 1) * kRows * 16 floats.
MLXHOG_CLONES void retreat_columns(const Chunk& c, Index column, Index d, const float* dx, const float* S_T,
                                   float* dS_T, float* history, RowSums& sums) {
  constexpr Index kStep = kRows * kLaneCount;
  Lanes s[kRows];
  for (Index i = 0; i < kRows; ++i) load(S_T + (column + i) * c.PK + d, s[i]);
  for (Index t = 0; t < c.L; ++t) {
    Lanes k, w, removal;
    load(c.row(Chunk::kK, t) + d, k);
    load(c.row(Chunk::kW, t) + d, w);
    load(c.row(Chunk::kRemoval, t) + d, removal);
    const Index columns = t * c.PV + column;
    for (Index i = 0; i < kRows; ++i) {
      store(s[i], history + t * kStep + i * kLaneCount);
      s[i] = w * s[i] - c.held[columns + i] * removal + c.v[columns + i] * k;
    }
  }
  for (Index i = 0; i < kRows; ++i) store(s[i], history + c.L * kStep + i * kLaneCount);
  for (Index i = 0; i < kRows; ++i) load(dS_T + (column + i) * c.PK + d, s[i]);
  for (Index t = c.L - 1; t >= 0; --t) {
    const Index at = t * c.PK + d, columns = t * c.PV + column;
    Lanes q, w, read, dq, dk, d_log, d_read, d_removal;
    load(c.row(Chunk::kQ, t) + d, q);
    load(c.row(Chunk::kW, t) + d, w);
    load(c.row(Chunk::kRead, t) + d, read);
    load(&sums.q[at], dq);
    load(&sums.k[at], dk);
    load(&sums.log_decay[at], d_log);
    load(&sums.read[at], d_read);
    load(&sums.removal[at], d_removal);
    for (Index i = 0; i < kRows; ++i) {
      Lanes before, after;
      load(history + t * kStep + i * kLaneCount, before);
      load(history + (t + 1) * kStep + i * kLaneCount, after);
      dq += c.dh[columns + i] * after;
      s[i] += c.dh[columns + i] * q;
      dk += c.v[columns + i] * s[i];
      d_removal -= c.held[columns + i] * s[i];
      d_read += dx[columns + i] * before;
      s[i] *= w;
      d_log += s[i] * before;
      s[i] += dx[columns + i] * read;
    }
    store(dq, &sums.q[at]);
    store(dk, &sums.k[at]);
    store(d_log, &sums.log_decay[at]);
    store(d_read, &sums.read[at]);
    store(d_removal, &sums.removal[at]);
  }
  for (Index i = 0; i < kRows; ++i) store(s[i], dS_T + (column + i) * c.PK + d);
}

struct Backward : BackwardStates<Chunk> {
  Buffer dv, dx;
  RowSums sums;

  explicit Backward(const DeltaShape& s) : BackwardStates(s) {
    for (Buffer* buffer : {&dv, &dx}) *buffer = uninitialised(s.chunk() * chunk.PV);
    for (Buffer* buffer : {&sums.q, &sums.k, &sums.log_decay, &sums.read, &sums.removal})
      *buffer = uninitialised(s.chunk() * chunk.PK);
  }
};

// dS and dS_T back over the chunk in `work`, whose gradients are stored from a row on.
void backward_chunk(const DeltaShape& s, Index row, Backward& work, const DplrGradients& grad) {
  const Chunk& c = work.chunk;
  RowSums& sums = work.sums;
  const std::pair<Buffer*, float*> results[] = {{&sums.q, grad.q},
                                                {&sums.k, grad.k},
                                                {&sums.log_decay, grad.log_decay},
                                                {&sums.read, grad.read},
                                                {&sums.removal, grad.removal}};
  for (auto& [sum, to] : results) std::fill_n(sum->get(), c.L * c.PK, 0.0f);
  for (Index column = 0; column < c.PV; column += kLaneCount)
    retreat(c, s.DK, column, work.dS.get(), work.dv.get(), work.dx.get());
  for (Index d = 0; d < c.PK; d += kLaneCount)
    for (Index column = 0; column < s.DV; column += kRows)
      retreat_columns(c, column, d, work.dx.get(), work.S_T.get(), work.dS_T.get(), work.history.get(), sums);
  copy_rows(c.L, s.DV, work.dv.get(), c.PV, grad.v + row * s.DV, s.NH * s.DV);
  for (auto& [sum, to] : results) copy_rows(c.L, s.DK, sum->get(), c.PK, to + row * s.DK, s.NH * s.DK);
}

}  // namespace

void dplr_forward(const DeltaShape& s, const DplrInputs& in, float* h, float* last, float* kept, float* held,
                  int threads) {
  forward_heads<Chunk>(s, in, h, last, kept, held, threads);
}

void dplr_backward(const DeltaShape& s, const DplrInputs& in, const float* kept, const float* held, const float* dh,
                   const float* d_last, const DplrGradients& grad, int threads) {
  for_each_head(s.B, s.NH, std::min(s.DK, s.DV), threads, [&] { return Backward(s); },
                [&](Index b, Index head, Backward& work) {
                  backward_head(s, in, kept, held, dh, d_last, grad.state, b, head, work,
                                [&](Index row) { backward_chunk(s, row, work, grad); });
                });
}

}  // namespace mlxhog
