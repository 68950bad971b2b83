#include "decay.h"

#include <algorithm>

#include "gemm.h"
#include "heads.h"
#include "lanes.h"

namespace mlxhog {
namespace {

constexpr Index kRows = 4;  // of a state, in registers together

MLXHOG_CLONES void exponentials(Index count, float* x) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) x[j] = exp_f32(x[j]);
}

// One chunk's inputs of one head, rows of whole lanes (the rest is 0): a, k, q (L, PK); v and dh (L, PV). All gradients
// are those of the sum of q_t^T S_t dh_t, which also has the two ways to read: h is its gradient of dh, by value that of
// q. So by value the query is in dh, and the gradient of the result in q.
struct Chunk {
  Index L = 0, PK, PV;
  Buffer a, k, q, v, dh;

  explicit Chunk(const DecayShape& s)
      : PK(whole_lanes(s.DK)),
        PV(whole_lanes(s.DV)),
        a(uninitialised(s.chunk() * PK)),
        k(uninitialised(s.chunk() * PK)),
        q(uninitialised(s.chunk() * PK)),
        v(uninitialised(s.chunk() * PV)),
        dh(uninitialised(s.chunk() * PV)) {}

  void load(const DecayShape& s, const DecayInputs& in, Index b, Index head, Index c) {
    L = std::min(s.chunk(), s.S - c * s.chunk());
    const Index row = (b * s.S + c * s.chunk()) * s.NH + head;
    copy_rows(L, s.DK, in.k + row * s.DK, s.NH * s.DK, k.get(), PK, PK);
    if (s.by_value)
      copy_rows(L, s.DV, in.q + row * s.DV, s.NH * s.DV, dh.get(), PV, PV, s.scale);
    else
      copy_rows(L, s.DK, in.q + row * s.DK, s.NH * s.DK, q.get(), PK, PK, s.scale);
    copy_rows(L, s.DV, in.v + row * s.DV, s.NH * s.DV, v.get(), PV, PV);
    if (s.A == 1) {
      for (Index t = 0; t < L; ++t) std::fill_n(&a[t * PK], PK, in.log_decay[row + t * s.NH]);
    } else {
      copy_rows(L, s.A, in.log_decay + row * s.A, s.NH * s.A, a.get(), PK, PK);
    }
    exponentials(L * PK, a.get());
  }

  void load_gradient(const DecayShape& s, const float* from, Index b, Index head, Index c) {
    const Index row = (b * s.S + c * s.chunk()) * s.NH + head;
    if (s.by_value)
      copy_rows(L, s.DK, from + row * s.DK, s.NH * s.DK, q.get(), PK, PK);
    else
      copy_rows(L, s.DV, from + row * s.DV, s.NH * s.DV, dh.get(), PV, PV);
  }
};

// S (rows, PV) over one chunk, for rows [d, d + kRows) and sixteen columns: h_t += S_t^T q_t.
MLXHOG_CLONES void advance(const Chunk& c, Index d, Index column, float* S, float* h) {
  Lanes s[kRows];
  for (Index i = 0; i < kRows; ++i) load(S + (d + i) * c.PV + column, s[i]);
  const float *a = &c.a[d], *k = &c.k[d], *q = &c.q[d], *v = &c.v[column];
  h += column;
  for (Index t = 0; t < c.L; ++t, a += c.PK, k += c.PK, q += c.PK, v += c.PV, h += c.PV) {
    Lanes value, sum;
    load(v, value);
    load(h, sum);
    for (Index i = 0; i < kRows; ++i) {
      s[i] = a[i] * s[i] + k[i] * value;
      sum += q[i] * s[i];
    }
    store(sum, h);
  }
  for (Index i = 0; i < kRows; ++i) store(s[i], S + (d + i) * c.PV + column);
}

// The same of the transposed state S_T (columns, PK), by value, for four columns and sixteen rows: h_t += S_t dh_t.
MLXHOG_CLONES void advance_columns(const Chunk& c, Index column, Index d, float* S_T, float* h) {
  Lanes s[kRows];
  for (Index i = 0; i < kRows; ++i) load(S_T + (column + i) * c.PK + d, s[i]);
  const float *v = &c.v[column], *dh = &c.dh[column];
  for (Index t = 0; t < c.L; ++t, v += c.PV, dh += c.PV) {
    const Index at = t * c.PK + d;
    Lanes a, k, sum;
    load(&c.a[at], a);
    load(&c.k[at], k);
    load(h + at, sum);
    for (Index i = 0; i < kRows; ++i) {
      s[i] = a * s[i] + v[i] * k;
      sum += dh[i] * s[i];
    }
    store(sum, h + at);
  }
  for (Index i = 0; i < kRows; ++i) store(s[i], S_T + (column + i) * c.PK + d);
}

// dS (rows, PV) back over one chunk, as `advance`: dv_t += dS_t^T k_t.
MLXHOG_CLONES void retreat(const Chunk& c, Index d, Index column, float* dS, float* dv) {
  Lanes s[kRows];
  for (Index i = 0; i < kRows; ++i) load(dS + (d + i) * c.PV + column, s[i]);
  for (Index t = c.L - 1; t >= 0; --t) {
    const float *a = &c.a[t * c.PK + d], *k = &c.k[t * c.PK + d], *q = &c.q[t * c.PK + d];
    Lanes dh, sum;
    load(&c.dh[t * c.PV + column], dh);
    load(dv + t * c.PV + column, sum);
    for (Index i = 0; i < kRows; ++i) {
      s[i] += q[i] * dh;
      sum += k[i] * s[i];
      s[i] *= a[i];
    }
    store(sum, dv + t * c.PV + column);
  }
  for (Index i = 0; i < kRows; ++i) store(s[i], dS + (d + i) * c.PV + column);
}

// Sums over the columns of S that a chunk adds to: rows (L, PK).
struct RowSums {
  float *dq, *dk, *d_log;
};

// The same of transposed states, S_T before the chunk and dS_T after it (columns, PK), for four columns and sixteen
// rows. `history` holds (L + 1) * kRows * 16 floats.
MLXHOG_CLONES void retreat_columns(const Chunk& c, Index column, Index d, const float* S_T, float* dS_T, float* history,
                                   const RowSums& sums) {
  constexpr Index kStep = kRows * kLaneCount;
  Lanes s[kRows];
  for (Index i = 0; i < kRows; ++i) load(S_T + (column + i) * c.PK + d, s[i]);
  for (Index t = 0; t < c.L; ++t) {
    Lanes a, k;
    load(&c.a[t * c.PK + d], a);
    load(&c.k[t * c.PK + d], k);
    const float* v = &c.v[t * c.PV + column];
    for (Index i = 0; i < kRows; ++i) {
      store(s[i], history + t * kStep + i * kLaneCount);
      s[i] = a * s[i] + v[i] * k;
    }
  }
  for (Index i = 0; i < kRows; ++i) store(s[i], history + c.L * kStep + i * kLaneCount);
  for (Index i = 0; i < kRows; ++i) load(dS_T + (column + i) * c.PK + d, s[i]);
  for (Index t = c.L - 1; t >= 0; --t) {
    const Index at = t * c.PK + d;
    Lanes a, q, dq, dk, d_log;
    load(&c.a[at], a);
    load(&c.q[at], q);
    load(sums.dq + at, dq);
    load(sums.dk + at, dk);
    load(sums.d_log + at, d_log);
    const float *v = &c.v[t * c.PV + column], *dh = &c.dh[t * c.PV + column];
    for (Index i = 0; i < kRows; ++i) {
      Lanes before, after;
      load(history + t * kStep + i * kLaneCount, before);
      load(history + (t + 1) * kStep + i * kLaneCount, after);
      dq += dh[i] * after;
      s[i] += dh[i] * q;
      dk += v[i] * s[i];
      s[i] *= a;
      d_log += s[i] * before;
    }
    store(dq, sums.dq + at);
    store(dk, sums.dk + at);
    store(d_log, sums.d_log + at);
  }
  for (Index i = 0; i < kRows; ++i) store(s[i], dS_T + (column + i) * c.PK + d);
}

struct Forward {
  Chunk chunk;
  Buffer S, S_T, h;

  explicit Forward(const DecayShape& s)
      : chunk(s),
        S(uninitialised(chunk.PK * chunk.PV)),
        S_T(s.by_value ? uninitialised(chunk.PK * chunk.PV) : Buffer{}),
        h(uninitialised(s.chunk() * (s.by_value ? chunk.PK : chunk.PV))) {}
};

// A state (DK, DV) in whole lanes; zeros if it is null.
void load_state(const DecayShape& s, const Chunk& c, const float* state, float* S) {
  std::fill_n(S, c.PK * c.PV, 0.0f);
  if (state) copy_rows(s.DK, s.DV, state, s.DV, S, c.PV);
}

// h (L, PV) of a chunk, and the state S (PK, PV) after it.
void read_keys(const DecayShape& s, const Chunk& c, float* S, float* h) {
  std::fill_n(h, c.L * c.PV, 0.0f);
  for (Index column = 0; column < c.PV; column += kLaneCount)
    for (Index d = 0; d < s.DK; d += kRows) advance(c, d, column, S, h);
}

void forward_head(const DecayShape& s, const DecayInputs& in, Index b, Index head, Forward& work, float* h, float* last,
                  float* kept) {
  Chunk& c = work.chunk;
  const Index pair = b * s.NH + head, state = s.DK * s.DV;
  load_state(s, c, in.state ? in.state + pair * state : nullptr, work.S.get());
  for (Index n = 0; n < s.chunks(); ++n) {
    c.load(s, in, b, head, n);
    if (kept) copy_rows(s.DK, s.DV, work.S.get(), c.PV, kept + (pair * s.chunks() + n) * state, s.DV);
    const Index row = (b * s.S + n * s.chunk()) * s.NH + head;
    if (s.by_value) {
      transpose(work.S.get(), c.PV, c.PK, c.PV, work.S_T.get());
      std::fill_n(work.h.get(), c.L * c.PK, 0.0f);
      for (Index d = 0; d < c.PK; d += kLaneCount)
        for (Index column = 0; column < s.DV; column += kRows)
          advance_columns(c, column, d, work.S_T.get(), work.h.get());
      transpose(work.S_T.get(), c.PK, c.PV, c.PK, work.S.get());
      copy_rows(c.L, s.DK, work.h.get(), c.PK, h + row * s.DK, s.NH * s.DK);
    } else {
      read_keys(s, c, work.S.get(), work.h.get());
      copy_rows(c.L, s.DV, work.h.get(), c.PV, h + row * s.DV, s.NH * s.DV);
    }
  }
  copy_rows(s.DK, s.DV, work.S.get(), c.PV, last + pair * state, s.DV);
}

struct Backward {
  Chunk chunk;
  Buffer S, S_T, dS, dS_T, history, dv, dq, dk, d_log;  // dq is that of Chunk::q

  explicit Backward(const DecayShape& s) : chunk(s) {
    const Index state = chunk.PK * chunk.PV, rows = s.chunk() * chunk.PK;
    for (Buffer* buffer : {&S, &S_T, &dS, &dS_T}) *buffer = uninitialised(state);
    for (Buffer* buffer : {&dq, &dk, &d_log}) *buffer = uninitialised(rows);
    dv = uninitialised(s.chunk() * chunk.PV);
    history = uninitialised((s.chunk() + 1) * kRows * kLaneCount);
  }
};

void store_gradients(const DecayShape& s, const Backward& work, Index row, const DecayGradients& grad) {
  const Chunk& c = work.chunk;
  copy_rows(c.L, s.DV, work.dv.get(), c.PV, grad.v + row * s.DV, s.NH * s.DV);
  if (!s.by_value) copy_rows(c.L, s.DK, work.dq.get(), c.PK, grad.q + row * s.DK, s.NH * s.DK, 0, s.scale);
  copy_rows(c.L, s.DK, work.dk.get(), c.PK, grad.k + row * s.DK, s.NH * s.DK);
  if (s.A != 1) return copy_rows(c.L, s.A, work.d_log.get(), c.PK, grad.log_decay + row * s.A, s.NH * s.A);
  for (Index t = 0; t < c.L; ++t) {
    float sum = 0;
    for (Index d = 0; d < s.DK; ++d) sum += work.d_log[t * c.PK + d];
    grad.log_decay[row + t * s.NH] = sum;
  }
}

void backward_head(const DecayShape& s, const DecayInputs& in, const float* kept, const float* dh, const float* d_last,
                   Index b, Index head, Backward& work, const DecayGradients& grad) {
  Chunk& c = work.chunk;
  const Index pair = b * s.NH + head, state = s.DK * s.DV;
  load_state(s, c, d_last ? d_last + pair * state : nullptr, work.dS.get());
  transpose(work.dS.get(), c.PV, c.PK, c.PV, work.dS_T.get());
  for (Index n = s.chunks() - 1; n >= 0; --n) {
    c.load(s, in, b, head, n);
    c.load_gradient(s, dh, b, head, n);
    load_state(s, c, kept + (pair * s.chunks() + n) * state, work.S.get());
    transpose(work.S.get(), c.PV, c.PK, c.PV, work.S_T.get());
    std::fill_n(work.dv.get(), c.L * c.PV, 0.0f);
    for (Buffer* sums : {&work.dq, &work.dk, &work.d_log}) std::fill_n(sums->get(), c.L * c.PK, 0.0f);
    for (Index column = 0; column < c.PV; column += kLaneCount)
      for (Index d = 0; d < s.DK; d += kRows) retreat(c, d, column, work.dS.get(), work.dv.get());
    for (Index d = 0; d < c.PK; d += kLaneCount)
      for (Index column = 0; column < s.DV; column += kRows)
        retreat_columns(c, column, d, work.S_T.get(), work.dS_T.get(), work.history.get(),
                        {work.dq.get(), work.dk.get(), work.d_log.get()});
    const Index row = (b * s.S + n * s.chunk()) * s.NH + head;
    store_gradients(s, work, row, grad);
    if (!s.by_value) continue;
    read_keys(s, c, work.S.get(), work.dv.get());
    copy_rows(c.L, s.DV, work.dv.get(), c.PV, grad.q + row * s.DV, s.NH * s.DV, 0, s.scale);
  }
  if (grad.state) copy_rows(s.DK, s.DV, work.dS.get(), c.PV, grad.state + pair * state, s.DV);
}

}  // namespace

void decay_forward(const DecayShape& s, const DecayInputs& in, float* h, float* last, float* kept, int threads) {
  for_each_head(s.B, s.NH, std::min(s.DK, s.DV), threads, [&] { return Forward(s); },
                [&](Index b, Index head, Forward& work) { forward_head(s, in, b, head, work, h, last, kept); });
}

void decay_backward(const DecayShape& s, const DecayInputs& in, const float* kept, const float* dh,
                    const float* d_last, const DecayGradients& grad, int threads) {
  for_each_head(s.B, s.NH, std::min(s.DK, s.DV), threads, [&] { return Backward(s); },
                [&](Index b, Index head, Backward& work) {
                  backward_head(s, in, kept, dh, d_last, b, head, work, grad);
                });
}

}  // namespace mlxhog
