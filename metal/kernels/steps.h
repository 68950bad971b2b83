// Optimizer steps that end in an atomic add: the arithmetic of metal/native/updates/elements.cpp, rounding for
// rounding, so that one writer gets the same bits from both.
//
// State that only this worker has (m, v) comes in and goes out; shared state changes in place. `decays` has
// one flag per kFlagFloats floats of the arena, which is how parameters are aligned. `hp` holds the rates, so
// that a new learning rate is new data and never a new kernel.
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

inline void sgd_element(const device float* arena, uint at, float g, float weight_decay, const device float* hp,
                        float grad_scale) {
  const float d = grad_scale * g + weight_decay * load(arena, at);
  add(arena, at, -(hp[kLr] * d));
}

// Returns the new momentum.
inline float momentum_element(const device float* arena, uint at, float g, float m, float weight_decay,
                              const device float* hp, float grad_scale) {
  const float d = grad_scale * g + weight_decay * load(arena, at);
  const float mean = hp[kMomentum] * m + d;
  const float step = hp[kNesterov] != 0.0f ? d + hp[kMomentum] * mean : mean;
  add(arena, at, -(hp[kLr] * step));
  return mean;
}

inline float adam_mean(float m, float s, const device float* hp) {
  return hp[kBeta1] * m + hp[kOneMinusBeta1] * s;
}

inline float adam_square(float v, float s, const device float* hp) {
  return hp[kBeta2] * v + hp[kOneMinusBeta2] * (s * s);
}

// The new value of an element of v that all workers share. The mean moves by compare-and-swap, as on the CPU:
// an atomic add of the difference could bring it below zero. After kMost failures it stays, and is counted.
template <uint kMost>
inline float adam_square_shared(const device float* v, uint at, float s, const device float* hp,
                                const device uint* failures) {
  const device uint* word = (const device uint*)(v + at);
  uint seen = load_bits(word);
  for (uint k = 0; k < kMost; ++k) {
    const float square = adam_square(as_type<float>(seen), s, hp);
    if (swap_bits(word, seen, as_type<uint>(square))) return square;
  }
  count(failures, 1u);
  return adam_square(as_type<float>(seen), s, hp);
}

inline void adam_element(const device float* arena, uint at, float mean, float square, float decay,
                         const device float* hp) {
  const float denominator = precise::sqrt(square) * hp[kRsqrtBias2] + hp[kEps];
  add(arena, at, -(decay * load(arena, at) + hp[kStep] * (mean / denominator)));
}

// Dense kernels: element i of the launch is element offset + i of the arena.

inline void sgd_apply(const device float* arena, const device float* g, const device uchar* decays,
                      const device float* hp, float grad_scale, uint n, uint offset, device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  const uint at = offset + i;
  sgd_element(arena, at, g[i], decay_rate(decays, at, hp[kWeightDecay]), hp, grad_scale);
}

inline void momentum_apply(const device float* arena, const device float* g, const device float* m,
                           const device uchar* decays, const device float* hp, float grad_scale, uint n,
                           uint offset, device float* m_out, uint i) {
  if (i >= n) return;
  const uint at = offset + i;
  const float weight_decay = decay_rate(decays, at, hp[kWeightDecay]);
  m_out[i] = momentum_element(arena, at, g[i], m[i], weight_decay, hp, grad_scale);
}

inline void adam_apply(const device float* arena, const device float* g, const device float* m,
                       const device float* v, const device uchar* decays, const device float* hp,
                       float grad_scale, uint n, uint offset, device float* m_out, device float* v_out, uint i) {
  if (i >= n) return;
  const uint at = offset + i;
  const float s = grad_scale * g[i];
  const float mean = adam_mean(m[i], s, hp), square = adam_square(v[i], s, hp);
  adam_element(arena, at, mean, square, decay_rate(decays, at, hp[kDecay]), hp);
  m_out[i] = mean;
  v_out[i] = square;
}

// Not a step yet: the direction still has to be orthogonalised. The arena is not written.
inline void muon_direction(const device float* g, const device float* m, const device float* hp, float grad_scale,
                           uint n, device float* m_out, device float* x_out, uint i) {
  if (i >= n) return;
  const float s = grad_scale * g[i];
  const float mean = hp[kMuonBeta1] * m[i] + hp[kMuonOneMinusBeta1] * s;
  m_out[i] = mean;
  x_out[i] = hp[kOneMinusNesterovWeight] * mean + hp[kNesterovWeight] * s;
}

// `v` is laid out as the arena.
template <uint kMost = kTries>
inline void adam_shared_apply(const device float* arena, const device float* v, const device uint* failures,
                              const device float* g, const device float* m, const device uchar* decays,
                              const device float* hp, float grad_scale, uint n, uint offset,
                              device float* m_out, uint i) {
  if (i >= n) return;
  const uint at = offset + i;
  const float s = grad_scale * g[i];
  const float mean = adam_mean(m[i], s, hp), square = adam_square_shared<kMost>(v, at, s, hp, failures);
  adam_element(arena, at, mean, square, decay_rate(decays, at, hp[kDecay]), hp);
  m_out[i] = mean;
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
