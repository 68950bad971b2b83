// The update of a run of elements: one struct per update rule, and the ways to write its step.
//
// `p` counts elements from the start of the parameter, `q` from the start of the gradient; they differ when
// the gradient holds only some rows. `apply` adds with SIMD (the caller holds the lock, or is racy);
// `apply_cas` adds at most kStripe elements by compare-and-swap. With one worker all ways give the same bits.
#pragma once

#include <algorithm>
#include <cstddef>

#include "cas_add.h"
#include "elements.h"

namespace mlxhog {

inline constexpr std::size_t kStripe = 1024;  // floats behind one dense lock: 4 KiB

struct AddStep {
  float* w;
  const float* d;
  int cas_width;

  void apply(std::size_t p, std::size_t q, std::size_t n) const { mlxhog_add(w + p, d + q, n); }
  void apply_cas(std::size_t p, std::size_t q, std::size_t n) const { cas_add(w + p, d + q, n, cas_width); }
};

// Rules: `fused` computes the step and adds it; `delta` leaves it in `out` and the parameter alone; both move
// the moments. `cas_delta` is `delta` of at most kStripe elements, with shared moments by compare-and-swap.

struct SgdRule {
  float* w;
  const float* g;
  SgdRates rates;

  void fused(std::size_t p, std::size_t q, std::size_t n) const { mlxhog_sgd(w + p, g + q, nullptr, n, &rates); }
  void delta(std::size_t p, std::size_t q, std::size_t n, float* out) const {
    mlxhog_sgd(w + p, g + q, out, n, &rates);
  }
  void cas_delta(std::size_t p, std::size_t q, std::size_t n, float* out) const { delta(p, q, n, out); }
};

struct MomentumRule {
  float* w;
  const float* g;
  float* m;  // private
  MomentumRates rates;

  void fused(std::size_t p, std::size_t q, std::size_t n) const {
    mlxhog_momentum(w + p, g + q, m + p, nullptr, n, &rates);
  }
  void delta(std::size_t p, std::size_t q, std::size_t n, float* out) const {
    mlxhog_momentum(w + p, g + q, m + p, out, n, &rates);
  }
  void cas_delta(std::size_t p, std::size_t q, std::size_t n, float* out) const { delta(p, q, n, out); }
};

struct AdamwRule {
  float* w;
  const float* g;
  float* m;  // both private, or both shared under the same lock as w
  float* v;
  AdamwRates rates;
  bool shared;

  void fused(std::size_t p, std::size_t q, std::size_t n) const {
    mlxhog_adamw(w + p, g + q, m + p, v + p, nullptr, n, &rates);
  }
  // Shared moments move without their lock, unless the caller holds it.
  void delta(std::size_t p, std::size_t q, std::size_t n, float* out) const {
    mlxhog_adamw(w + p, g + q, m + p, v + p, out, n, &rates);
  }
  void cas_delta(std::size_t p, std::size_t q, std::size_t n, float* out) const {
    if (!shared) return delta(p, q, n, out);
    float s[kStripe], mean[kStripe], square[kStripe];
    for (std::size_t i = 0; i < n; ++i) s[i] = rates.grad_scale * g[q + i];
    cas_mean(m + p, s, mean, n, rates.beta1, rates.one_minus_beta1);
    for (std::size_t i = 0; i < n; ++i) s[i] *= s[i];
    cas_mean(v + p, s, square, n, rates.beta2, rates.one_minus_beta2);
    AdamwRates as_they_are = rates;  // the step takes the new moments without moving them again
    as_they_are.beta1 = as_they_are.beta2 = 1.0f;
    as_they_are.one_minus_beta1 = as_they_are.one_minus_beta2 = 0.0f;
    mlxhog_adamw(w + p, g + q, mean, square, out, n, &as_they_are);
  }
};

// The step of a rule, added to the parameter. Where `last` is given it records the step: prev = last, last = d,
// both shared, laid out as the parameter and written under its lock. Elements are whole in every mode; without a lock
// two workers' steps may follow each other in either order.
template <class Rule>
struct Step {
  Rule rule;
  float* last = nullptr;
  float* prev = nullptr;

  void apply(std::size_t p, std::size_t q, std::size_t n) const {
    if (last == nullptr) return rule.fused(p, q, n);
    each_stripe(n, [&](std::size_t i, std::size_t k) {
      float d[kStripe];
      rule.delta(p + i, q + i, k, d);
      mlxhog_record(last + p + i, prev + p + i, d, k);
      mlxhog_add(rule.w + p + i, d, k);
    });
  }
  void apply_cas(std::size_t p, std::size_t q, std::size_t n) const {
    float d[kStripe];
    rule.cas_delta(p, q, n, d);
    if (last != nullptr) mlxhog_record(last + p, prev + p, d, n);
    cas_add(rule.w + p, d, n, widest_cas());
  }
  // Add the step to `pending`, private and laid out as the parameter, and leave the parameter alone. Reads of the
  // parameter race with its writers: elements are whole, of any age.
  void add_to(float* pending, std::size_t p, std::size_t q, std::size_t n) const {
    each_stripe(n, [&](std::size_t i, std::size_t k) {
      float d[kStripe];
      rule.delta(p + i, q + i, k, d);
      mlxhog_add(pending + p + i, d, k);
    });
  }

 private:
  template <class Run>
  static void each_stripe(std::size_t n, Run run) {
    for (std::size_t i = 0; i < n; i += kStripe) run(i, std::min(kStripe, n - i));
  }
};

// Clang deduces an aggregate's arguments from version 17 on.
template <class Rule>
Step(Rule) -> Step<Rule>;
template <class Rule>
Step(Rule, float*, float*) -> Step<Rule>;

// Muon's momentum: the mean moves, the direction goes to `x`, and no parameter is written. The mean is private, or
// shared under the lock of its parameter.
struct DirectionStep {
  const float* g;
  float* m;
  float* x;
  MuonRates rates;

  void apply(std::size_t p, std::size_t q, std::size_t n) const {
    mlxhog_muon_direction(g + q, m + p, x + q, n, &rates);
  }
  void apply_cas(std::size_t p, std::size_t q, std::size_t n) const {
    float s[kStripe], mean[kStripe];
    for (std::size_t i = 0; i < n; ++i) s[i] = rates.grad_scale * g[q + i];
    cas_mean(m + p, s, mean, n, rates.beta1, rates.one_minus_beta1);
    MuonRates as_it_is = rates;
    as_it_is.beta1 = 1.0f;
    as_it_is.one_minus_beta1 = 0.0f;
    mlxhog_muon_direction(g + q, mean, x + q, n, &as_it_is);
  }
};

}  // namespace mlxhog
