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

// An update rule, by name as in metal/kernels/steps.py. The moments that it has are private, or all shared under the
// same lock as w.
struct Rule {
  enum Kind { sgd, momentum, adam, adam_shared };

  Kind kind;
  float* w;
  const float* g;
  float *m, *v;
  const float* hp;  // eight rates; see elements.h
  float grad_scale;

  // Moves the moments, and adds the step to the parameter; or, unless `out` is null, leaves it there. Without their
  // lock shared moments move unless the caller holds it.
  void run(std::size_t p, std::size_t q, std::size_t n, float* out) const {
    if (kind == sgd) mlxhog_sgd(w + p, g + q, out, n, hp, grad_scale);
    else if (kind == momentum) mlxhog_momentum(w + p, g + q, m + p, out, n, hp, grad_scale);
    else mlxhog_adamw(w + p, g + q, m + p, v + p, out, n, hp, grad_scale);
  }

  // The step of at most kStripe elements, with shared moments by compare-and-swap.
  void cas_delta(std::size_t p, std::size_t q, std::size_t n, float* out) const {
    if (kind != adam_shared) return run(p, q, n, out);
    float s[kStripe], mean[kStripe], square[kStripe];
    for (std::size_t i = 0; i < n; ++i) s[i] = grad_scale * g[q + i];
    cas_mean(m + p, s, mean, n, hp[2], hp[3]);
    for (std::size_t i = 0; i < n; ++i) s[i] *= s[i];
    cas_mean(v + p, s, square, n, hp[4], hp[5]);
    // The step takes the new moments without moving them again.
    const float as_they_are[] = {hp[0], hp[1], 1.0f, 0.0f, 1.0f, 0.0f, hp[6], hp[7]};
    mlxhog_adamw(w + p, g + q, mean, square, out, n, as_they_are, grad_scale);
  }
};

// The step of a rule, added to the parameter. Where `last` is given it records the step: prev = last, last = d,
// both shared, laid out as the parameter and written under its lock. Elements are whole in every mode; without a lock
// two workers' steps may follow each other in either order.
struct Step {
  Rule rule;
  float* last = nullptr;
  float* prev = nullptr;

  void apply(std::size_t p, std::size_t q, std::size_t n) const {
    if (last == nullptr) return rule.run(p, q, n, nullptr);
    each_stripe(n, [&](std::size_t i, std::size_t k) {
      float d[kStripe];
      rule.run(p + i, q + i, k, d);
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
      rule.run(p + i, q + i, k, d);
      mlxhog_add(pending + p + i, d, k);
    });
  }

 private:
  template <class Run>
  static void each_stripe(std::size_t n, Run run) {
    for (std::size_t i = 0; i < n; i += kStripe) run(i, std::min(kStripe, n - i));
  }
};

// Muon's momentum: the mean moves, the direction goes to `x`, and no parameter is written. The mean is private, or
// shared under the lock of its parameter.
struct DirectionStep {
  const float* g;
  float *m, *x;
  const float* hp;
  float grad_scale;

  void apply(std::size_t p, std::size_t q, std::size_t n) const {
    mlxhog_muon_direction(g + q, m + p, x + q, n, hp, grad_scale);
  }
  void apply_cas(std::size_t p, std::size_t q, std::size_t n) const {
    float s[kStripe], mean[kStripe];
    for (std::size_t i = 0; i < n; ++i) s[i] = grad_scale * g[q + i];
    cas_mean(m + p, s, mean, n, hp[0], hp[1]);
    const float as_it_is[] = {1.0f, 0.0f, hp[2], hp[3]};
    mlxhog_muon_direction(g + q, mean, x + q, n, as_it_is, grad_scale);
  }
};

}  // namespace mlxhog
