// Optimizer steps that end in an atomic add: the arithmetic of metal/native/updates/elements.cpp, rounding for
// rounding, so that one writer gets the same bits from both.
//
// State (m, v) has the arena's layout and changes in place: plainly if only this worker writes it, by
// compare-and-swap if all workers share it. `decays` has one flag per kFlagFloats floats of the arena, which is how
// parameters are aligned. `hp` holds the rates, so that a new learning rate is new data and never a new kernel.
#pragma once

#include "atomics.h"
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

inline float sgd_delta(const device float* arena, uint at, float g, float weight_decay, const device float* hp,
                       float grad_scale) {
  const float d = grad_scale * g + weight_decay * load(arena, at);
  return -(hp[kLr] * d);
}

// Moves the momentum of an element, and returns its step.
inline float momentum_delta(const device float* arena, const device float* m, uint at, float g, float weight_decay,
                            const device float* hp, float grad_scale) {
  const float d = grad_scale * g + weight_decay * load(arena, at), momentum = hp[kMomentum];
  const float mean = momentum * load(m, at) + d;
  store(m, at, mean);
  return -(hp[kLr] * (hp[kNesterov] != 0.0f ? d + momentum * mean : mean));
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

inline float adam_delta(const device float* arena, uint at, float mean, float square, float decay,
                        const device float* hp) {
  const float denominator = precise::sqrt(square) * hp[kRsqrtBias2] + hp[kEps];
  return -(decay * load(arena, at) + hp[kStep] * (mean / denominator));
}

// The step of an element whose moments only this worker writes.
inline float adam_own_delta(const device float* arena, const device float* m, const device float* v, uint at,
                            float s, float decay, const device float* hp) {
  const float mean = own_mean(m, at, s, hp[kBeta1], hp[kOneMinusBeta1]);
  const float square = own_mean(v, at, s * s, hp[kBeta2], hp[kOneMinusBeta2]);
  return adam_delta(arena, at, mean, square, decay, hp);
}

// The step of an element whose moments all workers share.
template <uint kMost>
inline float adam_shared_delta(const device float* arena, const device float* m, const device float* v,
                               const device uint* failures, uint at, float s, float decay,
                               const device float* hp) {
  const float mean = shared_mean<kMost>(m, at, s, hp[kBeta1], hp[kOneMinusBeta1], failures);
  const float square = shared_mean<kMost>(v, at, s * s, hp[kBeta2], hp[kOneMinusBeta2], failures);
  return adam_delta(arena, at, mean, square, decay, hp);
}

// Add a step, and keep it beside the one before. Of two workers' steps at once either may be the last one.
inline void add_recorded(const device float* arena, const device float* last, const device float* prev, uint at,
                         float delta) {
  store(prev, at, load(last, at));
  store(last, at, delta);
  add(arena, at, delta);
}

// Dense kernels: element i of the launch is element offset + i of the arena.

inline void sgd_apply(const device float* arena, const device float* g, const device uchar* decays,
                      const device float* hp, float grad_scale, uint n, uint offset, device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  const uint at = offset + i;
  add(arena, at, sgd_delta(arena, at, g[i], decay_rate(decays, at, hp[kWeightDecay]), hp, grad_scale));
}

inline void sgd_recorded_apply(const device float* arena, const device float* last, const device float* prev,
                               const device float* g, const device uchar* decays, const device float* hp,
                               float grad_scale, uint n, uint offset, device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  const uint at = offset + i;
  const float weight_decay = decay_rate(decays, at, hp[kWeightDecay]);
  add_recorded(arena, last, prev, at, sgd_delta(arena, at, g[i], weight_decay, hp, grad_scale));
}

inline void momentum_apply(const device float* arena, const device float* m, const device float* g,
                           const device uchar* decays, const device float* hp, float grad_scale, uint n,
                           uint offset, device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  const uint at = offset + i;
  const float weight_decay = decay_rate(decays, at, hp[kWeightDecay]);
  add(arena, at, momentum_delta(arena, m, at, g[i], weight_decay, hp, grad_scale));
}

inline void adam_apply(const device float* arena, const device float* m, const device float* v,
                       const device float* g, const device uchar* decays, const device float* hp,
                       float grad_scale, uint n, uint offset, device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  const uint at = offset + i;
  const float decay = decay_rate(decays, at, hp[kDecay]);
  add(arena, at, adam_own_delta(arena, m, v, at, grad_scale * g[i], decay, hp));
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

template <uint kMost = kTries>
inline void adam_shared_apply(const device float* arena, const device float* m, const device float* v,
                              const device uint* failures, const device float* g, const device uchar* decays,
                              const device float* hp, float grad_scale, uint n, uint offset,
                              device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  const uint at = offset + i;
  const float decay = decay_rate(decays, at, hp[kDecay]);
  add(arena, at, adam_shared_delta<kMost>(arena, m, v, failures, at, grad_scale * g[i], decay, hp));
}

template <uint kMost = kTries>
inline void adam_shared_recorded_apply(const device float* arena, const device float* last,
                                       const device float* prev, const device float* m, const device float* v,
                                       const device uint* failures, const device float* g,
                                       const device uchar* decays, const device float* hp, float grad_scale,
                                       uint n, uint offset, device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  const uint at = offset + i;
  const float decay = decay_rate(decays, at, hp[kDecay]);
  const float delta = adam_shared_delta<kMost>(arena, m, v, failures, at, grad_scale * g[i], decay, hp);
  add_recorded(arena, last, prev, at, delta);
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
