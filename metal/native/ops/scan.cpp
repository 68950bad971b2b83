// The selective scan of Mamba: of every channel c a state of N numbers,
//     S_t[c] = exp(dt_t[c] A[c]) S_{t-1}[c] + dt_t[c] u_t[c] Bt_t,   y_t[c] = S_t[c] . Ct_t.
//
// Position by position, sixteen channels at once; the backward pass computes the states of a chunk again from the one
// before it. Work is split over B. Source: Gu and Dao 2023, Mamba, arXiv:2312.00752.
#include <algorithm>
#include <string>

#include "gemm.h"
#include "rows.h"
#include "shapes.h"

namespace mlxhog {
namespace {

constexpr Index kChunk = 16;  // positions from one kept state to the next
constexpr Index kRows = 4;    // of a state, in registers together

struct ScanShape {
  Index B, S, C, N;

  Index chunks() const { return (S + kChunk - 1) / kChunk; }
  Index kept() const { return B * chunks() * whole_rows() * whole_lanes(C); }  // floats
  Index whole_rows() const { return (N + kRows - 1) / kRows * kRows; }
};

// Inputs, or their gradients; `state` is that before the first position, null for zeros or a gradient without use.
template <class Float>
struct ScanArrays {
  Float *u, *dt, *A, *Bt, *Ct, *state;
};
using ScanInputs = ScanArrays<const float>;
using ScanGradients = ScanArrays<float>;

// (C, N) -> (rows, CP): channels side by side, zeros around.
void to_lanes(const ScanShape& s, const float* from, float* to) {
  std::fill_n(to, s.whole_rows() * whole_lanes(s.C), 0.0f);
  if (from) transpose(from, s.N, s.C, s.N, to, whole_lanes(s.C));
}

void from_lanes(const ScanShape& s, const float* from, float* to) {
  transpose(from, whole_lanes(s.C), s.N, s.C, to, s.N);
}

// One chunk's inputs of one sequence: u, dt, dy (L, CP); Bt, Ct (L, rows); the rest of a row is 0. A (rows, CP).
struct Chunk {
  Index L = 0, CP, NP;
  Buffer A, u, dt, dy, Bt, Ct;
  Buffer decays;  // exp(dt A) of sixteen channels: (L, rows, 16)

  Chunk(const ScanShape& s, const ScanInputs& in)
      : CP(whole_lanes(s.C)), NP(s.whole_rows()), A(uninitialized(NP * CP)),
        decays(uninitialized(kChunk * NP * kLaneCount)) {
    for (Buffer* rows : {&u, &dt, &dy}) *rows = uninitialized(kChunk * CP);
    for (Buffer* rows : {&Bt, &Ct}) *rows = uninitialized(kChunk * NP);
    to_lanes(s, in.A, A.get());
  }

  void load_inputs(const ScanShape& s, const ScanInputs& in, Index b, Index c) {
    L = std::min(kChunk, s.S - c * kChunk);
    const Index row = b * s.S + c * kChunk;
    copy_rows(L, s.C, in.u + row * s.C, s.C, u.get(), CP, CP);
    copy_rows(L, s.C, in.dt + row * s.C, s.C, dt.get(), CP, CP);
    copy_rows(L, s.N, in.Bt + row * s.N, s.N, Bt.get(), NP, NP);
    copy_rows(L, s.N, in.Ct + row * s.N, s.N, Ct.get(), NP, NP);
  }

  MLXHOG_CLONES void compute_decays(Index channel) {
    for (Index t = 0; t < L; ++t)
      for (Index n = 0; n < NP; ++n) {
        const float *step = &dt[t * CP + channel], *rate = &A[n * CP + channel];
        float* out = &decays[(t * NP + n) * kLaneCount];
#pragma omp simd
        for (Index l = 0; l < kLaneCount; ++l) out[l] = exp_f32(step[l] * rate[l]);
      }
  }
};

// Rows [n, n + kRows) of the states S (rows, CP) of sixteen channels over a chunk; y (L, CP).
MLXHOG_CLONES void chunk_forward(const Chunk& c, Index channel, Index n, float* S, float* y) {
  Lanes s[kRows];
  for (Index i = 0; i < kRows; ++i) s[i] = lanes(S + (n + i) * c.CP + channel);
  for (Index t = 0; t < c.L; ++t) {
    const Index at = t * c.CP + channel, row = t * c.NP + n;
    const Lanes x = lanes(&c.dt[at]) * lanes(&c.u[at]);
    Lanes sum = lanes(y + at);
    for (Index i = 0; i < kRows; ++i) {
      s[i] = lanes(&c.decays[(row + i) * kLaneCount]) * s[i] + c.Bt[row + i] * x;
      sum += c.Ct[row + i] * s[i];
    }
    lanes(y + at) = sum;
  }
  for (Index i = 0; i < kRows; ++i) lanes(S + (n + i) * c.CP + channel) = s[i];
}

// Sums over a chunk: dx, of dt u, and ddt (L, CP); dB and dC (L, rows, 16), still to be summed over the lanes;
// dA (rows, CP).
struct Sums {
  float *dx, *ddt, *dB, *dC, *dA;
};

// Back over a chunk: S holds the states before it, dS their gradients after it on entry, before it on return.
MLXHOG_CLONES void chunk_backward(const Chunk& c, Index channel, Index n, const float* S, float* dS, const Sums& sums) {
  Lanes history[kChunk + 1][kRows], s[kRows], rate[kRows], dA[kRows];
  for (Index i = 0; i < kRows; ++i) history[0][i] = lanes(S + (n + i) * c.CP + channel);
  for (Index t = 0; t < c.L; ++t) {
    const Index at = t * c.CP + channel, row = t * c.NP + n;
    const Lanes x = lanes(&c.dt[at]) * lanes(&c.u[at]);
    for (Index i = 0; i < kRows; ++i)
      history[t + 1][i] = lanes(&c.decays[(row + i) * kLaneCount]) * history[t][i] + c.Bt[row + i] * x;
  }
  for (Index i = 0; i < kRows; ++i) {
    const Index at = (n + i) * c.CP + channel;
    s[i] = lanes(dS + at), rate[i] = lanes(&c.A[at]), dA[i] = lanes(sums.dA + at);
  }
  for (Index t = c.L - 1; t >= 0; --t) {
    const Index at = t * c.CP + channel, row = t * c.NP + n;
    const Lanes dt = lanes(&c.dt[at]), dy = lanes(&c.dy[at]), x = dt * lanes(&c.u[at]);
    Lanes dx = lanes(sums.dx + at), ddt = lanes(sums.ddt + at);
    for (Index i = 0; i < kRows; ++i) {
      const Index entry = (row + i) * kLaneCount;
      s[i] += c.Ct[row + i] * dy;
      lanes(sums.dC + entry) += dy * history[t + 1][i];
      lanes(sums.dB + entry) += s[i] * x;
      dx += c.Bt[row + i] * s[i];
      s[i] *= lanes(&c.decays[entry]);
      const Lanes exponent = s[i] * history[t][i];
      dA[i] += exponent * dt;
      ddt += exponent * rate[i];
    }
    lanes(sums.dx + at) = dx, lanes(sums.ddt + at) = ddt;
  }
  for (Index i = 0; i < kRows; ++i) {
    lanes(dS + (n + i) * c.CP + channel) = s[i];
    lanes(sums.dA + (n + i) * c.CP + channel) = dA[i];
  }
}

void forward_row(const ScanShape& s, const ScanInputs& in, Index b, float* y, float* last, float* kept) {
  Chunk c(s, in);
  const Index state = c.NP * c.CP;
  const Buffer S = uninitialized(state), sums = uninitialized(kChunk * c.CP);
  to_lanes(s, in.state ? in.state + b * s.C * s.N : nullptr, S.get());
  for (Index n = 0; n < s.chunks(); ++n) {
    c.load_inputs(s, in, b, n);
    if (kept) std::copy_n(S.get(), state, kept + (b * s.chunks() + n) * state);
    std::fill_n(sums.get(), c.L * c.CP, 0.0f);
    for (Index channel = 0; channel < c.CP; channel += kLaneCount) {
      c.compute_decays(channel);
      for (Index row = 0; row < c.NP; row += kRows) chunk_forward(c, channel, row, S.get(), sums.get());
    }
    copy_rows(c.L, s.C, sums.get(), c.CP, y + (b * s.S + n * kChunk) * s.C, s.C);
  }
  from_lanes(s, S.get(), last + b * s.C * s.N);
}

// out[t, n] = the sum of the lanes of from (L, rows, 16)
void sum_lanes(const ScanShape& s, const Chunk& c, const float* from, float* out) {
  for (Index t = 0; t < c.L; ++t)
    for (Index n = 0; n < s.N; ++n) {
      float sum = 0;
      for (Index l = 0; l < kLaneCount; ++l) sum += from[(t * c.NP + n) * kLaneCount + l];
      out[t * s.N + n] = sum;
    }
}

MLXHOG_CLONES void finish_steps(const Chunk& c, float* dx, float* ddt) {
#pragma omp simd
  for (Index j = 0; j < c.L * c.CP; ++j) {
    ddt[j] += dx[j] * c.u[j];
    dx[j] *= c.dt[j];
  }
}

// Adds to dA (rows, CP).
void backward_row(const ScanShape& s, const ScanInputs& in, const float* kept, const float* dy, const float* d_last,
                  Index b, const ScanGradients& grad, float* dA) {
  Chunk c(s, in);
  const Index state = c.NP * c.CP, steps = kChunk * c.CP, entries = kChunk * c.NP * kLaneCount;
  const Buffer dS = uninitialized(state), dx = uninitialized(steps), ddt = uninitialized(steps);
  const Buffer dB = uninitialized(entries), dC = uninitialized(entries);
  to_lanes(s, d_last ? d_last + b * s.C * s.N : nullptr, dS.get());
  for (Index n = s.chunks() - 1; n >= 0; --n) {
    const Index row = b * s.S + n * kChunk;
    c.load_inputs(s, in, b, n);
    copy_rows(c.L, s.C, dy + row * s.C, s.C, c.dy.get(), c.CP, c.CP);
    for (float* sums : {dx.get(), ddt.get()}) std::fill_n(sums, c.L * c.CP, 0.0f);
    for (float* sums : {dB.get(), dC.get()}) std::fill_n(sums, c.L * c.NP * kLaneCount, 0.0f);
    for (Index channel = 0; channel < c.CP; channel += kLaneCount) {
      c.compute_decays(channel);
      for (Index r = 0; r < c.NP; r += kRows)
        chunk_backward(c, channel, r, kept + (b * s.chunks() + n) * state, dS.get(),
                {dx.get(), ddt.get(), dB.get(), dC.get(), dA});
    }
    finish_steps(c, dx.get(), ddt.get());
    copy_rows(c.L, s.C, dx.get(), c.CP, grad.u + row * s.C, s.C);
    copy_rows(c.L, s.C, ddt.get(), c.CP, grad.dt + row * s.C, s.C);
    sum_lanes(s, c, dB.get(), grad.Bt + row * s.N);
    sum_lanes(s, c, dC.get(), grad.Ct + row * s.N);
  }
  if (grad.state) from_lanes(s, dS.get(), grad.state + b * s.C * s.N);
}

ScanShape scan_shape(Sizes& sizes) {
  const auto s = sizes.as<ScanShape>("B", "S", "C", "N");
  sizes.expect({{"KEPT", s.kept()}});
  return s;
}

Index scan_kept(Index B, Index S, Index C, Index N) {
  require(std::min({B, S, C, N}) >= 0, "B, S, C and N must be at least 0");
  return ScanShape{B, S, C, N}.kept();
}

}  // namespace

void bind_scan(nb::module_& m) {
  const std::string scan = "u dt: B S C, A: C N, Bt Ct: B S N";
  def(m, "scan", scan + ", state: B C N, y: B S C, last: B C N, kept: KEPT",
      "S_t[c] = exp(dt_t[c] A[c]) S_{t-1}[c] + dt_t[c] u_t[c] Bt_t, y_t[c] = S_t[c] . Ct_t. kept, for the gradient, "
      "has KEPT = scan_kept.",
      [](Sizes& sizes, Floats u, Floats dt, Floats A, Floats Bt, Floats Ct, MaybeFloats state, Result y, Result last,
         MaybeResult kept, int threads) {
        const ScanShape s = scan_shape(sizes);
        parallel_for(s.B, threads, [&](Index b) { forward_row(s, {u, dt, A, Bt, Ct, state}, b, y, last, kept); });
      });
  def(m, "scan_grad",
      scan + ", kept: KEPT, dy: B S C, d_last: B C N, du ddt: B S C, dA: C N, dBt dCt: B S N, d_state: B C N", "",
      [](Sizes& sizes, Floats u, Floats dt, Floats A, Floats Bt, Floats Ct, Floats kept, Floats dy,
         MaybeFloats d_last, Result du, Result ddt, Result dA, Result dBt, Result dCt, MaybeResult d_state,
         int threads) {
        const ScanShape s = scan_shape(sizes);
        const auto sum = summed_over_tasks(s.B, s.whole_rows() * whole_lanes(s.C), threads, [&](Index b, float* part) {
          backward_row(s, {u, dt, A, Bt, Ct, nullptr}, kept, dy, d_last, b, {du, ddt, dA, dBt, dCt, d_state}, part);
        });
        from_lanes(s, sum.data(), dA);
      });
  m.def("scan_kept", &scan_kept, nb::kw_only(), "B"_a, "S"_a, "C"_a, "N"_a, "How many floats `scan` keeps.");
}

}  // namespace mlxhog
