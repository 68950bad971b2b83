// Optimizer steps that end in an atomic add: the arithmetic of metal/native/updates/elements.cpp, rounding for
// rounding, so that one writer gets the same bits from both.
//
// State (m, v) has the arena's layout and changes in place: plainly if only this worker writes it, by
// compare-and-swap if all workers share it. `decays` has one flag per kFlagFloats floats of the arena, which is how
// parameters are aligned. `hp` holds the rates, so that a new learning rate is new data and never a new kernel.
#pragma once

#include "atomics.h"
#include "rows.h"
#include "unfused.h"

namespace mlxhog {

enum : uint { kFlagFloats = 32 };

enum SgdRate : uint { kLr, kWeightDecay, kMomentum, kNesterov };

// kDecay = lr * weight_decay, kStep = lr / bias1, kRsqrtBias2 = 1 / sqrt(bias2), from float64 on the host.
enum AdamRate : uint {
  kDecay,
  kStep,
  kBeta1,
  kOneMinusBeta1,
  kBeta2,
  kOneMinusBeta2,
  kRsqrtBias2,
  kEps,
};

enum MuonRate : uint { kMuonBeta1, kMuonOneMinusBeta1, kNesterovWeight, kOneMinusNesterovWeight };

// The rate of weight decay of an element: 0 where its parameter has none.
inline float decay_rate(const device uchar* decays, uint at, float rate) {
  return decays[at / kFlagFloats] != 0 ? rate : 0.0f;
}

// The new value of an element of a mean that only this worker writes, beta * mean + one_minus_beta * x.
inline float own_mean(const device float* mean, uint at, float x, float beta, float one_minus_beta) {
  const float next = beta * load(mean, at) + one_minus_beta * x;
  store(mean, at, next);
  return next;
}

// The same of a mean that all workers share. It moves by compare-and-swap, as on the CPU: an atomic add of the
// difference could bring a mean of squares below zero. After kMost failures it stays, and is counted.
template <uint kMost>
inline float shared_mean(const device float* mean, uint at, float x, float beta, float one_minus_beta,
                         const device uint* failures) {
  const device uint* word = (const device uint*)(mean + at);
  const float part = one_minus_beta * x;
  uint seen = load_bits(word);
  for (uint k = 0; k < kMost; ++k) {
    const float next = beta * as_type<float>(seen) + part;
    if (swap_bits(word, seen, as_type<uint>(next))) return next;
  }
  count(failures, 1u);
  return beta * as_type<float>(seen) + part;
}

// The rules: what a step of each reads and moves, and the step of an element. The moments of the first three are only
// this worker's.

struct Sgd {
  const device float* arena;
  const device uchar* decays;
  const device float* hp;
  float grad_scale;
};

struct Momentum {
  const device float* arena;
  const device float* m;
  const device uchar* decays;
  const device float* hp;
  float grad_scale;
};

struct Adam {
  const device float* arena;
  const device float* m;
  const device float* v;
  const device uchar* decays;
  const device float* hp;
  float grad_scale;
};

template <uint kMost = kTries>
struct AdamShared {
  const device float* arena;
  const device float* m;
  const device float* v;
  const device uint* failures;
  const device uchar* decays;
  const device float* hp;
  float grad_scale;
};

// A rule whose step is kept in `last`, and the one before in `prev`.
template <class Rule>
struct Recorded {
  Rule rule;
  const device float* last;
  const device float* prev;
};

inline float step_delta(Sgd r, uint at, float g) {
  const float d = r.grad_scale * g + decay_rate(r.decays, at, r.hp[kWeightDecay]) * load(r.arena, at);
  return -(r.hp[kLr] * d);
}

inline float step_delta(Momentum r, uint at, float g) {
  const float d = r.grad_scale * g + decay_rate(r.decays, at, r.hp[kWeightDecay]) * load(r.arena, at);
  const float momentum = r.hp[kMomentum], mean = momentum * load(r.m, at) + d;
  store(r.m, at, mean);
  return -(r.hp[kLr] * (r.hp[kNesterov] != 0.0f ? d + momentum * mean : mean));
}

inline float adam_delta(const device float* arena, uint at, float mean, float square, const device uchar* decays,
                        const device float* hp) {
  const float denominator = precise::sqrt(square) * hp[kRsqrtBias2] + hp[kEps];
  return -(decay_rate(decays, at, hp[kDecay]) * load(arena, at) + hp[kStep] * (mean / denominator));
}

inline float step_delta(Adam r, uint at, float g) {
  const float s = r.grad_scale * g;
  const float mean = own_mean(r.m, at, s, r.hp[kBeta1], r.hp[kOneMinusBeta1]);
  const float square = own_mean(r.v, at, s * s, r.hp[kBeta2], r.hp[kOneMinusBeta2]);
  return adam_delta(r.arena, at, mean, square, r.decays, r.hp);
}

template <uint kMost>
inline float step_delta(AdamShared<kMost> r, uint at, float g) {
  const float s = r.grad_scale * g;
  const float mean = shared_mean<kMost>(r.m, at, s, r.hp[kBeta1], r.hp[kOneMinusBeta1], r.failures);
  const float square = shared_mean<kMost>(r.v, at, s * s, r.hp[kBeta2], r.hp[kOneMinusBeta2], r.failures);
  return adam_delta(r.arena, at, mean, square, r.decays, r.hp);
}

template <class Rule>
inline void step_element(Rule r, uint at, float g) {
  add(r.arena, at, step_delta(r, at, g));
}

// Of two workers' steps at once either may be the last one.
template <class Rule>
inline void step_element(Recorded<Rule> r, uint at, float g) {
  const float delta = step_delta(r.rule, at, g);
  store(r.prev, at, load(r.last, at));
  store(r.last, at, delta);
  add(r.rule.arena, at, delta);
}

// Element i of the launch is element offset + i of the arena.
template <class Rule>
inline void step_dense(Rule rule, const device float* g, uint n, uint offset, device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  step_element(rule, offset + i, g[i]);
}

// Only some rows of a parameter, each once: an embedding. Other rows keep their state as it is, and a row outside the
// parameter changes nothing; done[k] is 0 there.
template <class Rule>
inline void step_rows(Rule rule, const device int* rows, const device float* g, uint d, uint n_rows, uint height,
                      uint offset, device uint* done, uint3 here) {
  uint p;
  if (!row_element(rows, d, n_rows, height, here, done, p)) return;
  step_element(rule, offset + p, g[here.y * d + here.x]);
}

// Not a step yet: the direction still has to be orthogonalised. The arena is not written.
inline void muon_direction(const device float* m, const device float* g, const device float* hp, float grad_scale,
                           uint n, uint offset, device float* x_out, uint i) {
  if (i >= n) return;
  const float s = grad_scale * g[i];
  const float mean = own_mean(m, offset + i, s, hp[kMuonBeta1], hp[kMuonOneMinusBeta1]);
  x_out[i] = hp[kOneMinusNesterovWeight] * mean + hp[kNesterovWeight] * s;
}

template <uint kMost = kTries>
inline void muon_direction_shared(const device float* m, const device uint* failures, const device float* g,
                                  const device float* hp, float grad_scale, uint n, uint offset,
                                  device float* x_out, uint i) {
  if (i >= n) return;
  const float s = grad_scale * g[i];
  const float mean = shared_mean<kMost>(m, offset + i, s, hp[kMuonBeta1], hp[kMuonOneMinusBeta1], failures);
  x_out[i] = hp[kOneMinusNesterovWeight] * mean + hp[kNesterovWeight] * s;
}

// APOLLO: w += coef * g * s - decay * w for a matrix with n / cols rows, with one factor s per row (row_step 1,
// col_step 0), per column (0, 1) or for all (0, 0).
inline void channel_scale_apply(const device float* arena, const device float* g, const device float* s,
                                float coef, float decay, uint cols, uint row_step, uint col_step, uint n,
                                uint offset, device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  const uint at = offset + i;
  const float factor = s[i / cols * row_step + i % cols * col_step];
  add(arena, at, coef * (g[i] * factor) - decay * load(arena, at));
}

}  // namespace mlxhog
