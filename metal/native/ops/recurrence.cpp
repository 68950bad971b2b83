// The linear recurrences of recurrence.h; `kept` are the states before every chunk, `held` the values that were read.
#include <algorithm>
#include <string>

#include "gemm.h"
#include "recurrence.h"
#include "rows.h"
#include "shapes.h"

namespace mlxhog {
namespace {

// Inputs, or their gradients: null what the removal does not have. `state`, that before the first position, may be
// null: zeros, or a gradient without use.
template <class Float>
struct RecurrenceArrays {
  Float *q, *k, *v, *log_decay, *beta, *read, *removal, *state;
};
using RecurrenceInputs = RecurrenceArrays<const float>;
using RecurrenceGradients = RecurrenceArrays<float>;

constexpr Index kRows = 4;  // of a transposed state, in registers together

// Rows of a key's width, and their gradients.
enum Row { kQ, kK, kDecay, kRead, kRemoval, kRowKinds };

MLXHOG_CLONES void multiply(Index count, const float* x, const float* y, float* product) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) product[j] = x[j] * y[j];
}

// One chunk's inputs of one head in rows of whole lanes (the rest is 0). Rows of a key's width, (L, PK), have one
// before and one after them, of zeros, and of ones in kDecay. What the own key reads is the state after its decay:
// kRead is decay * k. All gradients are those of L = sum_t q_t^T S_t dh_t: h = dL/d(dh) and dq = dL/dq. By value the
// two exchange their places: h = dL/dq, so the query is in dh, and the gradient of the result in kQ.
struct Chunk {
  const RecurrenceShape& s;
  const Index PK = whole_lanes(s.DK), PV = whole_lanes(s.DV), length = (s.chunk() + 2) * PK;
  Index L = 0;
  Buffer rows = uninitialized(kRowKinds * length), beta = uninitialized(s.chunk()), decay = uninitialized(s.chunk());
  Buffer v = uninitialized(s.chunk() * PV), held = uninitialized(s.chunk() * PV), dh = uninitialized(s.chunk() * PV);

  const float* row(Row kind, Index t) const { return &rows[kind * length + (t + 1) * PK]; }

  void load_keys(const float* from, Index first, Row kind, float factor = 1.0f) {
    float* to = &rows[kind * length];
    std::fill_n(to, PK, 0.0f);
    if (from) copy_rows(L, s.DK, from + first * s.DK, s.NH * s.DK, to + PK, PK, PK, factor);
    std::fill_n(to + (L + 1) * PK, PK, 0.0f);
  }

  // An array of the shape of v.
  void load_values(const float* from, Index first, float* to, float factor = 1.0f) const {
    copy_rows(L, s.DV, from + first * s.DV, s.NH * s.DV, to, PV, PV, factor);
  }

  void load(const RecurrenceInputs& in, Index first, Index count) {
    L = count;
    if (s.by_value) load_values(in.q, first, dh.get(), s.scale);
    else load_keys(in.q, first, kQ, s.scale);
    load_keys(in.k, first, kK);
    load_values(in.v, first, v.get());
    float* decays = &rows[kDecay * length];
    if (s.A == 1) {
      for (Index t = 0; t < L; ++t) decay[t] = in.log_decay[first + t * s.NH];
      exponentials(L, decay.get());
      for (Index t = -1; t <= L; ++t) std::fill_n(decays + (t + 1) * PK, PK, t < 0 || t == L ? 1.0f : decay[t]);
    } else {
      load_keys(in.log_decay, first, kDecay);
      exponentials((L + 2) * PK, decays);
    }
    if (s.removal == Removal::own_key) {
      for (Index t = 0; t < L; ++t) beta[t] = in.beta[first + t * s.NH];
      multiply((L + 2) * PK, decays, &rows[kK * length], &rows[kRead * length]);
    } else if (s.removal == Removal::free) {
      load_keys(in.read, first, kRead);
      load_keys(in.removal, first, kRemoval);
    }
  }
};

// The cases of a loop that are compiled apart.
template <Removal kRemovalKind, bool kOneDecay>
struct Form {
  static constexpr bool none = kRemovalKind == Removal::none, own = kRemovalKind == Removal::own_key;
  static constexpr bool free = kRemovalKind == Removal::free;

  MLXHOG_INLINE static float decay(const float* row, float first, Index d) { return kOneDecay ? first : row[d]; }
};

template <class Call>
MLXHOG_INLINE void in_form(const RecurrenceShape& s, const Call& call) {
  const bool one = s.A == 1;
  if (s.removal == Removal::none) return one ? call(Form<Removal::none, true>{}) : call(Form<Removal::none, false>{});
  if (s.removal == Removal::free) return call(Form<Removal::free, false>{});
  one ? call(Form<Removal::own_key, true>{}) : call(Form<Removal::own_key, false>{});
}

// Sixteen columns of S (PK, PV) over a chunk: h and held (L, PV). The pass that writes a position also reads the values
// of the next one.
MLXHOG_CLONES void chunk_forward(Chunk& c, Index column, float* S, float* h) {
  in_form(c.s, [&]<class F>(F) MLXHOG_ALWAYS {
    const Index DK = c.s.DK, PK = c.PK, PV = c.PV, L = c.L;
    const float *q = c.row(kQ, 0), *k = c.row(kK, 0), *a = c.row(kDecay, 0), *removal = c.row(kRemoval, 0);
    const float *next = c.row(kRead, 1), *v = &c.v[column], *beta = c.beta.get();
    float* held = &c.held[column];
    Lanes found = {};
    for (Index d = 0; !F::none && d < DK; ++d) found += c.row(kRead, 0)[d] * lanes(S + d * PV + column);
    for (Index t = 0; t < L; ++t, q += PK, k += PK, a += PK, removal += PK, next += PK) {
      const float first = a[0];
      Lanes value = lanes(v + t * PV);
      if (!F::none) lanes(held + t * PV) = found;
      if (F::own) value = beta[t] * (value - found);
      Lanes sums[2] = {}, finds[2] = {};
      for (Index d = 0; d < DK; d += 2)  // rows come in pairs: the last of an odd number is 0
        for (Index i = 0; i < 2; ++i) {
          Lanes s = lanes(S + (d + i) * PV + column);
          s = F::free ? F::decay(a, first, d + i) * s - removal[d + i] * found + k[d + i] * value
                      : F::decay(a, first, d + i) * s + k[d + i] * value;
          sums[i] += q[d + i] * s;
          if (!F::none) finds[i] += next[d + i] * s;
          lanes(S + (d + i) * PV + column) = s;
        }
      lanes(h + t * PV + column) = sums[0] + sums[1];
      found = finds[0] + finds[1];
    }
  });
}

// By value: four columns and sixteen rows of the transposed state S_T (columns, PK): h_t += S_t dh_t.
MLXHOG_CLONES void chunk_forward_columns(const Chunk& c, Index column, Index d, float* S_T, float* h) {
  const Index PK = c.PK, PV = c.PV, L = c.L;
  const float *a_rows = c.row(kDecay, 0) + d, *k_rows = c.row(kK, 0) + d, *v = &c.v[column], *dh = &c.dh[column];
  Lanes s[kRows];
  for (Index i = 0; i < kRows; ++i) s[i] = lanes(S_T + (column + i) * PK + d);
  for (Index t = 0; t < L; ++t, v += PV, dh += PV) {
    const Lanes a = lanes(a_rows + t * PK), k = lanes(k_rows + t * PK);
    Lanes sum = lanes(h + t * PK + d);
    for (Index i = 0; i < kRows; ++i) {
      s[i] = a * s[i] + v[i] * k;
      sum += dh[i] * s[i];
    }
    lanes(h + t * PK + d) = sum;
  }
  for (Index i = 0; i < kRows; ++i) lanes(S_T + (column + i) * PK + d) = s[i];
}

// Sixteen columns of dS (PK, PV) back over a chunk: the gradients dv of written and dx of read values, (L, PV).
MLXHOG_CLONES void chunk_backward(const Chunk& c, Index column, float* dS, float* dv, float* dx) {
  in_form(c.s, [&]<class F>(F) MLXHOG_ALWAYS {
    const Index DK = c.s.DK, PV = c.PV;
    Lanes change = {};
    for (Index t = c.L; t >= 0; --t) {
      // From after position t to before it, and to after position t - 1; at the ends one of the two changes nothing.
      const float *a = c.row(kDecay, t), *read = c.row(kRead, t);
      const float *q = c.row(kQ, t - 1), *k = c.row(kK, t - 1), *removal = c.row(kRemoval, t - 1);
      const float first = a[0];
      Lanes dh = {}, values[2] = {}, finds[2] = {};
      if (t > 0) dh = lanes(&c.dh[(t - 1) * PV + column]);
      for (Index d = 0; d < DK; d += 2)
        for (Index i = 0; i < 2; ++i) {
          Lanes s = lanes(dS + (d + i) * PV + column);
          s = F::none ? F::decay(a, first, d + i) * s + q[d + i] * dh
                      : F::decay(a, first, d + i) * s + read[d + i] * change + q[d + i] * dh;
          values[i] += k[d + i] * s;
          if (F::free) finds[i] += removal[d + i] * s;
          lanes(dS + (d + i) * PV + column) = s;
        }
      if (t == 0) return;
      const Lanes value = values[0] + values[1];
      lanes(dv + (t - 1) * PV + column) = value;
      if (F::none) continue;
      change = F::own ? -c.beta[t - 1] * value : -(finds[0] + finds[1]);
      lanes(dx + (t - 1) * PV + column) = change;
    }
  });
}

// Room of a head's backward pass: S before a chunk and dS, the gradient of the state after it, (PK, PV) each, and both
// transposed; the states (L + 1, kRows, 16) of some columns; rows of a value's width and gradients of rows of a key's.
struct Backward {
  Chunk chunk;
  Buffer S, S_T, dS, dS_T, history, dv, dx, written, sums[kRowKinds];

  explicit Backward(const RecurrenceShape& s) : chunk{s}, history(uninitialized((s.chunk() + 1) * kRows * kLaneCount)) {
    for (Buffer* buffer : {&S, &S_T, &dS, &dS_T}) *buffer = uninitialized(chunk.PK * chunk.PV);
    for (Buffer* buffer : {&dv, &dx, &written}) *buffer = uninitialized(s.chunk() * chunk.PV);
    for (Buffer& buffer : sums) buffer = uninitialized(s.chunk() * chunk.PK);
  }
};

// The same of transposed states, S_T before the chunk and dS_T after it (columns, PK), for four columns and sixteen
// rows, with dx known and `v` the values that were written. Adds to the sums over columns.
MLXHOG_CLONES void chunk_backward_columns(Backward& work, Index column, Index d, const float* v) {
  in_form(work.chunk.s, [&]<class F>(F) MLXHOG_ALWAYS {
    constexpr Index kStep = kRows * kLaneCount;
    const Chunk& c = work.chunk;
    const Index PK = c.PK, PV = c.PV, L = c.L;
    const float *values = v + column, *held = &c.held[column], *dh = &c.dh[column], *dx = &work.dx[column];
    const float *q_rows = c.row(kQ, 0) + d, *k_rows = c.row(kK, 0) + d, *a_rows = c.row(kDecay, 0) + d;
    const float *read_rows = c.row(kRead, 0) + d, *removal_rows = c.row(kRemoval, 0) + d;
    float *dq_rows = &work.sums[kQ][d], *dk_rows = &work.sums[kK][d], *d_log_rows = &work.sums[kDecay][d];
    float *d_read_rows = &work.sums[kRead][d], *d_removal_rows = &work.sums[kRemoval][d];
    float *S_T = &work.S_T[column * PK + d], *dS_T = &work.dS_T[column * PK + d], *history = work.history.get();
    Lanes s[kRows];
    for (Index i = 0; i < kRows; ++i) s[i] = lanes(S_T + i * PK);
    for (Index t = 0; t < L; ++t) {
      const Lanes k = lanes(k_rows + t * PK), a = lanes(a_rows + t * PK);
      Lanes removal = {};
      if (F::free) removal = lanes(removal_rows + t * PK);
      for (Index i = 0; i < kRows; ++i) {
        lanes(history + t * kStep + i * kLaneCount) = s[i];
        s[i] = F::free ? a * s[i] - held[t * PV + i] * removal + values[t * PV + i] * k
                       : a * s[i] + values[t * PV + i] * k;
      }
    }
    for (Index i = 0; i < kRows; ++i) lanes(history + L * kStep + i * kLaneCount) = s[i], s[i] = lanes(dS_T + i * PK);
    for (Index t = L - 1; t >= 0; --t) {
      const Index row = t * PK, at = t * PV;
      const Lanes q = lanes(q_rows + row), a = lanes(a_rows + row);
      Lanes dq = lanes(dq_rows + row), dk = lanes(dk_rows + row), d_log = lanes(d_log_rows + row);
      Lanes read = {}, d_read = {}, d_removal = {};
      if (!F::none) read = lanes(read_rows + row);
      if (F::free) d_read = lanes(d_read_rows + row), d_removal = lanes(d_removal_rows + row);
      for (Index i = 0; i < kRows; ++i) {
        const Lanes before = lanes(history + t * kStep + i * kLaneCount);
        const Lanes after = lanes(history + (t + 1) * kStep + i * kLaneCount);
        dq += dh[at + i] * after;
        s[i] += dh[at + i] * q;
        dk += values[at + i] * s[i];
        if (F::free) d_removal -= held[at + i] * s[i];
        if (!F::none) d_read += dx[at + i] * before;
        s[i] *= a;
        d_log += s[i] * before;
        if (!F::none) s[i] += dx[at + i] * read;
      }
      if (F::own) dk += a * d_read;  // the key is read as decay * k
      if (F::own) d_log += read * d_read;
      lanes(dq_rows + row) = dq, lanes(dk_rows + row) = dk, lanes(d_log_rows + row) = d_log;
      if (F::free) lanes(d_read_rows + row) = d_read, lanes(d_removal_rows + row) = d_removal;
    }
    for (Index i = 0; i < kRows; ++i) lanes(dS_T + i * PK) = s[i];
  });
}

// The values that were written with the own key.
MLXHOG_CLONES void written_values(const Chunk& c, float* written) {
  for (Index t = 0; t < c.L; ++t)
#pragma omp simd
    for (Index e = 0; e < c.PV; ++e) written[t * c.PV + e] = c.beta[t] * (c.v[t * c.PV + e] - c.held[t * c.PV + e]);
}

// The gradient of beta, and that of written values -> that of v.
MLXHOG_CLONES void finish_own_key(const Chunk& c, float* dv, float* d_beta) {
  for (Index t = 0; t < c.L; ++t, dv += c.PV) {
    const float *v = &c.v[t * c.PV], *held = &c.held[t * c.PV], beta = c.beta[t];
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index e = 0; e < c.PV; ++e) {
      sum += dv[e] * (v[e] - held[e]);
      dv[e] *= beta;
    }
    d_beta[t * c.s.NH] = sum;
  }
}

// A state (DK, DV) in whole lanes; zeros if it is null.
void load_state(const Chunk& c, const float* state, float* S) {
  std::fill_n(S, c.PK * c.PV, 0.0f);
  if (state) copy_rows(c.s.DK, c.s.DV, state, c.s.DV, S, c.PV);
}

// h (L, PV) of a chunk, and the state S (PK, PV) after it.
void chunk_forward_all(Chunk& c, float* S, float* h) {
  for (Index column = 0; column < c.PV; column += kLaneCount) chunk_forward(c, column, S, h);
}

// The chunks of a head in order: step(its number, its first row, its length).
template <class Step>
void for_each_chunk(const RecurrenceShape& s, Index b, Index head, bool backwards, const Step& step) {
  for (Index j = 0; j < s.chunks(); ++j) {
    const Index n = backwards ? s.chunks() - 1 - j : j, first = n * s.chunk();
    step((b * s.NH + head) * s.chunks() + n, (b * s.S + first) * s.NH + head, std::min(s.chunk(), s.S - first));
  }
}

struct Forward {
  Chunk chunk;
  Buffer S, S_T, h;

  explicit Forward(const RecurrenceShape& s)
      : chunk{s}, S(uninitialized(chunk.PK * chunk.PV)), S_T(uninitialized(s.by_value ? chunk.PK * chunk.PV : 0)),
        h(uninitialized(s.chunk() * std::max(chunk.PK, chunk.PV))) {}
};

void forward_head(const RecurrenceShape& s, const RecurrenceInputs& in, Index b, Index head, Forward& work, float* h,
                  float* last, float* kept, float* held) {
  Chunk& c = work.chunk;
  const Index state = s.DK * s.DV, at = (b * s.NH + head) * state;
  float *S = work.S.get(), *S_T = work.S_T.get(), *out = work.h.get();
  load_state(c, in.state ? in.state + at : nullptr, S);
  for_each_chunk(s, b, head, false, [&](Index n, Index first, Index count) {
    c.load(in, first, count);
    if (kept) copy_rows(s.DK, s.DV, S, c.PV, kept + n * state, s.DV);
    if (!s.by_value) {
      chunk_forward_all(c, S, out);
      copy_rows(c.L, s.DV, out, c.PV, h + first * s.DV, s.NH * s.DV);
      if (held) copy_rows(c.L, s.DV, c.held.get(), c.PV, held + first * s.DV, s.NH * s.DV);
      return;
    }
    transpose(S, c.PV, c.PK, c.PV, S_T);
    std::fill_n(out, c.L * c.PK, 0.0f);
    for (Index d = 0; d < c.PK; d += kLaneCount)
      for (Index column = 0; column < s.DV; column += kRows) chunk_forward_columns(c, column, d, S_T, out);
    transpose(S_T, c.PK, c.PV, c.PK, S);
    copy_rows(c.L, s.DK, out, c.PK, h + first * s.DK, s.NH * s.DK);
  });
  copy_rows(s.DK, s.DV, S, c.PV, last + at, s.DV);
}

void store_gradients(Backward& work, Index first, const RecurrenceGradients& grad) {
  const Chunk& c = work.chunk;
  const RecurrenceShape& s = c.s;
  if (s.removal == Removal::own_key) finish_own_key(c, work.dv.get(), grad.beta + first);
  copy_rows(c.L, s.DV, work.dv.get(), c.PV, grad.v + first * s.DV, s.NH * s.DV);
  float* const results[] = {s.by_value ? nullptr : grad.q, grad.k, s.A == 1 ? nullptr : grad.log_decay, grad.read,
                            grad.removal};
  for (int kind = 0; kind < kRowKinds; ++kind)
    if (results[kind])
      copy_rows(c.L, s.DK, work.sums[kind].get(), c.PK, results[kind] + first * s.DK, s.NH * s.DK, 0,
                kind == kQ ? s.scale : 1.0f);
  for (Index t = 0; s.A == 1 && t < c.L; ++t) {
    float sum = 0;
    for (Index d = 0; d < s.DK; ++d) sum += work.sums[kDecay][t * c.PK + d];
    grad.log_decay[first + t * s.NH] = sum;
  }
}

void backward_head(const RecurrenceShape& s, const RecurrenceInputs& in, const float* kept, const float* held,
                   const float* dh, const float* d_last, Index b, Index head, Backward& work,
                   const RecurrenceGradients& grad) {
  Chunk& c = work.chunk;
  const Index state = s.DK * s.DV, at = (b * s.NH + head) * state;
  float *S = work.S.get(), *dS = work.dS.get();
  load_state(c, d_last ? d_last + at : nullptr, dS);
  transpose(dS, c.PV, c.PK, c.PV, work.dS_T.get());
  for_each_chunk(s, b, head, true, [&](Index n, Index first, Index count) {
    c.load(in, first, count);
    if (held) c.load_values(held, first, c.held.get());
    if (s.by_value) c.load_keys(dh, first, kQ);
    else c.load_values(dh, first, c.dh.get());
    if (s.removal == Removal::own_key) written_values(c, work.written.get());
    load_state(c, kept + n * state, S);
    transpose(S, c.PV, c.PK, c.PV, work.S_T.get());
    for (Buffer& sums : work.sums) std::fill_n(sums.get(), c.L * c.PK, 0.0f);
    for (Index column = 0; column < c.PV; column += kLaneCount)
      chunk_backward(c, column, dS, work.dv.get(), work.dx.get());
    const float* v = s.removal == Removal::own_key ? work.written.get() : c.v.get();
    for (Index d = 0; d < c.PK; d += kLaneCount)
      for (Index column = 0; column < s.DV; column += kRows) chunk_backward_columns(work, column, d, v);
    store_gradients(work, first, grad);
    if (!s.by_value) return;
    chunk_forward_all(c, S, work.dv.get());
    copy_rows(c.L, s.DV, work.dv.get(), c.PV, grad.q + first * s.DV, s.NH * s.DV, 0, s.scale);
  });
  if (grad.state) copy_rows(s.DK, s.DV, dS, c.PV, grad.state + at, s.DV);
}

RecurrenceShape recurrence_shape(Sizes& sizes, const float* beta, const float* read, const float* removal, float scale,
                                 bool by_value) {
  RecurrenceShape s{sizes["B"], sizes["S"], sizes["NH"], sizes["DK"], sizes["DV"], sizes["A"], Removal::none, scale,
                    by_value};
  require(!read == !removal && !(beta && read) && !(by_value && (beta || read)),
          "recurrence: give beta, or read and removal, or neither and perhaps by_value");
  if (beta) s.removal = Removal::own_key;
  if (read) s.removal = Removal::free;
  sizes.expect({{"A", s.A == 1 && !read ? 1 : s.DK},
                {"DQ", by_value ? s.DV : s.DK},
                {"DH", by_value ? s.DK : s.DV},
                {"NC", s.chunks()}});
  return s;
}

Index recurrence_chunks(Index S, Index DK) {
  require(S >= 0 && DK > 0, "S must be at least 0 and DK at least 1");
  RecurrenceShape s{};
  s.S = S, s.DK = DK;
  return s.chunks();
}

}  // namespace

void bind_recurrence(nb::module_& m) {
  const std::string inputs =
      "q: B S NH DQ, k: B S NH DK, v: B S NH DV, log_decay: B S NH A, beta: B S NH, read removal: B S NH DK";
  const std::string kept = ", kept: B NH NC DK DV, held: B S NH DV";
  m.def("recurrence_chunks", &recurrence_chunks, nb::kw_only(), "S"_a, "DK"_a,
        "How many states `recurrence` keeps per head.");
  def(m, "recurrence", inputs + ", state: B NH DK DV, h: B S NH DH, last: B NH DK DV" + kept,
      "S_t = D S_{t-1} + k_t v_t^T, h_t = scale S_t^T q_t with D = diag(exp(log_decay_t)), A = DK or 1. With beta the "
      "delta rule: beta_t k_t (v_t - S_{t-1}^T D k_t)^T in place of k_t v_t^T. With read and removal, less "
      "removal_t (S_{t-1}^T read_t)^T. By value, h_t = scale S_t q_t, q is as wide as v and h as k. kept, with NC = "
      "recurrence_chunks, and held, what was read, are for the gradient.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats log_decay, MaybeFloats beta, MaybeFloats read,
         MaybeFloats removal, MaybeFloats state, Result h, Result last, MaybeResult kept, MaybeResult held, float scale,
         bool by_value, int threads) {
        const RecurrenceShape s = recurrence_shape(sizes, beta, read, removal, scale, by_value);
        const RecurrenceInputs in{q, k, v, log_decay, beta, read, removal, state};
        for_each_head(s.B, s.NH, std::min(s.DK, s.DV), threads, [&] { return Forward(s); },
                      [&](Index b, Index head, Forward& work) {
                        forward_head(s, in, b, head, work, h, last, kept, held);
                      });
      }, "scale"_a = 1.0f, "by_value"_a = false);
  def(m, "recurrence_grad",
      inputs + kept + ", dh: B S NH DH, d_last: B NH DK DV, dq: B S NH DQ, dk: B S NH DK, dv: B S NH DV, "
                      "d_log_decay: B S NH A, d_beta: B S NH, d_read d_removal: B S NH DK, d_state: B NH DK DV",
      "",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats log_decay, MaybeFloats beta, MaybeFloats read,
         MaybeFloats removal, Floats kept, MaybeFloats held, Floats dh, MaybeFloats d_last, Result dq, Result dk,
         Result dv, Result d_log_decay, MaybeResult d_beta, MaybeResult d_read, MaybeResult d_removal,
         MaybeResult d_state, float scale, bool by_value, int threads) {
        const RecurrenceShape s = recurrence_shape(sizes, beta, read, removal, scale, by_value);
        require(s.removal == Removal::none || held, "recurrence_grad: a removal has held values");
        require(!beta == !d_beta && !read == !d_read && !read == !d_removal,
                "recurrence_grad: give a gradient for each input, and for no other");
        const RecurrenceInputs in{q, k, v, log_decay, beta, read, removal, nullptr};
        const RecurrenceGradients grad{dq, dk, dv, d_log_decay, d_beta, d_read, d_removal, d_state};
        // The gates' gradients are one float per head: neighbors share lines, whatever the width of the heads.
        const Index width = s.removal == Removal::own_key ? 1 : std::min(s.DK, s.DV);
        for_each_head(s.B, s.NH, width, threads, [&] { return Backward(s); },
                      [&](Index b, Index head, Backward& work) {
                        backward_head(s, in, kept, held, dh, d_last, b, head, work, grad);
                      });
      }, "scale"_a = 1.0f, "by_value"_a = false);
}

}  // namespace mlxhog
