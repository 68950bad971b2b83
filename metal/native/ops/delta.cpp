#include "delta.h"

#include <algorithm>
#include <vector>

#include "delta_heads.h"
#include "lanes.h"

namespace mlxhog {
namespace {

// One chunk's inputs of one head, rows of whole lanes (the rest is 0): k and q (L, PK) with a row of zeros before and
// after.
struct Chunk : ChunkRows {
  Buffer k_rows, q_rows;
  std::vector<float> a, beta;

  explicit Chunk(const DeltaShape& s)
      : ChunkRows(s),
        k_rows(uninitialised((s.chunk() + 2) * PK)),
        q_rows(uninitialised((s.chunk() + 2) * PK)),
        a(s.chunk()),
        beta(s.chunk()) {}

  const float* k(Index t) const { return &k_rows[(t + 1) * PK]; }
  const float* q(Index t) const { return &q_rows[(t + 1) * PK]; }

  void load_inputs(const DeltaShape& s, const DeltaInputs& in, Index b, Index head, Index c) {
    L = std::min(s.chunk(), s.S - c * s.chunk());
    const Index row = (b * s.S + c * s.chunk()) * s.NH + head;
    load_rows(s, in.k + row * s.DK, k_rows.get());
    load_rows(s, in.q + row * s.DK, q_rows.get());
    load_columns(s, in.v, row, v.get());
    load_gates(in.log_decay + row, in.beta + row, s.NH);
  }

 private:
  void load_rows(const DeltaShape& s, const float* from, float* to) const {
    std::fill_n(to, PK, 0.0f);
    copy_rows(L, s.DK, from, s.NH * s.DK, to + PK, PK, PK);
    std::fill_n(to + (L + 1) * PK, PK, 0.0f);
  }

  MLXHOG_CLONES void load_gates(const float* log_decay, const float* strength, Index ld) {
    for (Index t = 0; t < L; ++t) {
      a[t] = log_decay[t * ld];
      beta[t] = strength[t * ld];
    }
    float* decay = a.data();
#pragma omp simd
    for (Index t = 0; t < L; ++t) decay[t] = exp_f32(decay[t]);
  }
};

// Sixteen columns of S (PK, PV) over a chunk: h and held (L, PV). The pass that writes a position also reads the
// values of the next key.
MLXHOG_CLONES void advance(const Chunk& c, Index DK, Index column, float* S, float* h, float* held) {
  Lanes found = {};
  for (Index d = 0; d < DK; ++d) {
    Lanes s;
    load(S + d * c.PV + column, s);
    found += c.k(0)[d] * s;
  }
  for (Index t = 0; t < c.L; ++t) {
    const float *k = c.k(t), *q = c.q(t), *next = c.k(t + 1);
    Lanes value;
    load(&c.v[t * c.PV + column], value);
    const float a = c.a[t];
    const Lanes old = a * found, write = c.beta[t] * (value - old);
    store(old, held + t * c.PV + column);
    Lanes sums[2] = {}, finds[2] = {};
    for (Index d = 0; d < DK; d += 2)  // rows come in pairs: the last of an odd number is 0
      for (Index i = 0; i < 2; ++i) {
        Lanes s;
        load(S + (d + i) * c.PV + column, s);
        s = a * s + k[d + i] * write;
        sums[i] += q[d + i] * s;
        finds[i] += next[d + i] * s;
        store(s, S + (d + i) * c.PV + column);
      }
    store(sums[0] + sums[1], h + t * c.PV + column);
    found = finds[0] + finds[1];
  }
}

// Sixteen columns of dS (PK, PV) back over a chunk: the gradients dw of written and du of read values, (L, PV).
MLXHOG_CLONES void retreat(const Chunk& c, Index DK, Index column, float* dS, float* dw, float* du) {
  Lanes found = {}, change = {}, dh;
  float a = 1.0f;
  for (Index t = c.L; t >= 0; --t) {
    // From after position t to before it, and to after position t - 1; first and last with one of the two alone.
    const bool first = t == c.L, last = t == 0;
    if (!first) {
      store(found, dw + t * c.PV + column);
      a = c.a[t];
      change = (-a * c.beta[t]) * found;
      store(change, du + t * c.PV + column);
    }
    if (last) dh = Lanes{};
    else load(&c.dh[(t - 1) * c.PV + column], dh);
    const float *k = c.k(t), *q = c.q(t - 1), *before = c.k(t - 1);
    Lanes finds[2] = {};
    for (Index d = 0; d < DK; d += 2)
      for (Index i = 0; i < 2; ++i) {
        Lanes s;
        load(dS + (d + i) * c.PV + column, s);
        s = a * s + k[d + i] * change + q[d + i] * dh;
        finds[i] += before[d + i] * s;
        store(s, dS + (d + i) * c.PV + column);
      }
    found = finds[0] + finds[1];
  }
}

// Sums over the columns of S that a chunk adds to: rows (L, PK).
struct RowSums {
  float *dq, *dk, *d_log;
};

// The same of transposed states, S_T before the chunk and dS_T after it (columns, PK), for four columns and sixteen
// rows, with w, the written values, and du known. `history` holds (L + 1) * kRows * 16 floats.
MLXHOG_CLONES void retreat_columns(const Chunk& c, Index column, Index d, const float* w, const float* du,
                                   const float* S_T, float* dS_T, float* history, const RowSums& sums) {
  constexpr Index kStep = kRows * kLaneCount;
  Lanes s[kRows];
  for (Index i = 0; i < kRows; ++i) load(S_T + (column + i) * c.PK + d, s[i]);
  for (Index t = 0; t < c.L; ++t) {
    Lanes k;
    load(c.k(t) + d, k);
    for (Index i = 0; i < kRows; ++i) {
      store(s[i], history + t * kStep + i * kLaneCount);
      s[i] = c.a[t] * s[i] + w[t * c.PV + column + i] * k;
    }
  }
  for (Index i = 0; i < kRows; ++i) store(s[i], history + c.L * kStep + i * kLaneCount);
  for (Index i = 0; i < kRows; ++i) load(dS_T + (column + i) * c.PK + d, s[i]);
  for (Index t = c.L - 1; t >= 0; --t) {
    const Index at = t * c.PK + d, columns = t * c.PV + column;
    Lanes k, q, dq, dk, d_log;
    load(c.k(t) + d, k);
    load(c.q(t) + d, q);
    load(sums.dq + at, dq);
    load(sums.dk + at, dk);
    load(sums.d_log + at, d_log);
    for (Index i = 0; i < kRows; ++i) {
      Lanes before, after;
      load(history + t * kStep + i * kLaneCount, before);
      load(history + (t + 1) * kStep + i * kLaneCount, after);
      dq += c.dh[columns + i] * after;
      s[i] += c.dh[columns + i] * q;
      dk += w[columns + i] * s[i] + du[columns + i] * before;
      s[i] *= c.a[t];
      d_log += s[i] * before;
      s[i] += du[columns + i] * k;
    }
    store(dq, sums.dq + at);
    store(dk, sums.dk + at);
    store(d_log, sums.d_log + at);
  }
  for (Index i = 0; i < kRows; ++i) store(s[i], dS_T + (column + i) * c.PK + d);
}

struct Backward : BackwardStates<Chunk> {
  Buffer w, dw, du, dq, dk, d_log;

  explicit Backward(const DeltaShape& s) : BackwardStates(s) {
    for (Buffer* buffer : {&w, &dw, &du}) *buffer = uninitialised(s.chunk() * chunk.PV);
    for (Buffer* buffer : {&dq, &dk, &d_log}) *buffer = uninitialised(s.chunk() * chunk.PK);
  }
};

MLXHOG_CLONES void writes(const Chunk& c, float* w) {
  for (Index t = 0; t < c.L; ++t)
#pragma omp simd
    for (Index e = 0; e < c.PV; ++e) w[t * c.PV + e] = c.beta[t] * (c.v[t * c.PV + e] - c.held[t * c.PV + e]);
}

// The gradients of the gates, and dw -> dv.
MLXHOG_CLONES void finish_gates(const Chunk& c, Index ld, const float* d_log, float* dw, float* d_log_decay,
                                float* d_beta) {
  for (Index t = 0; t < c.L; ++t) {
    const float *v = &c.v[t * c.PV], *held = &c.held[t * c.PV], beta = c.beta[t];
    float* d = dw + t * c.PV;
    float of_beta = 0, of_held = 0, of_state = 0;
#pragma omp simd reduction(+ : of_beta, of_held)
    for (Index e = 0; e < c.PV; ++e) {
      of_beta += d[e] * (v[e] - held[e]);
      of_held += d[e] * held[e];
      d[e] *= beta;
    }
#pragma omp simd reduction(+ : of_state)
    for (Index j = 0; j < c.PK; ++j) of_state += d_log[t * c.PK + j];
    d_beta[t * ld] = of_beta;
    d_log_decay[t * ld] = of_state - beta * of_held;
  }
}

// dS and dS_T back over the chunk in `work`, whose gradients are stored from a row on.
void backward_chunk(const DeltaShape& s, Index row, Backward& work, const DeltaGradients& grad) {
  const Chunk& c = work.chunk;
  writes(c, work.w.get());
  for (Buffer* sums : {&work.dq, &work.dk, &work.d_log}) std::fill_n(sums->get(), c.L * c.PK, 0.0f);
  for (Index column = 0; column < c.PV; column += kLaneCount)
    retreat(c, s.DK, column, work.dS.get(), work.dw.get(), work.du.get());
  for (Index d = 0; d < c.PK; d += kLaneCount)
    for (Index column = 0; column < s.DV; column += kRows)
      retreat_columns(c, column, d, work.w.get(), work.du.get(), work.S_T.get(), work.dS_T.get(), work.history.get(),
                      {work.dq.get(), work.dk.get(), work.d_log.get()});
  finish_gates(c, s.NH, work.d_log.get(), work.dw.get(), grad.log_decay + row, grad.beta + row);
  copy_rows(c.L, s.DV, work.dw.get(), c.PV, grad.v + row * s.DV, s.NH * s.DV);
  copy_rows(c.L, s.DK, work.dq.get(), c.PK, grad.q + row * s.DK, s.NH * s.DK);
  copy_rows(c.L, s.DK, work.dk.get(), c.PK, grad.k + row * s.DK, s.NH * s.DK);
}

}  // namespace

void delta_forward(const DeltaShape& s, const DeltaInputs& in, float* h, float* last, float* kept, float* held,
                   int threads) {
  forward_heads<Chunk>(s, in, h, last, kept, held, threads);
}

void delta_backward(const DeltaShape& s, const DeltaInputs& in, const float* kept, const float* held, const float* dh,
                    const float* d_last, const DeltaGradients& grad, int threads) {
  // The gates' gradients are one float per head: neighbours share lines, whatever the width of the heads.
  for_each_head(s.B, s.NH, 1, threads, [&] { return Backward(s); },
                [&](Index b, Index head, Backward& work) {
                  backward_head(s, in, kept, held, dh, d_last, grad.state, b, head, work,
                                [&](Index row) { backward_chunk(s, row, work, grad); });
                });
}

}  // namespace mlxhog
