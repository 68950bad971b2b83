// What an update does to a run of elements: one struct per update rule, two ways to write.
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

struct SgdStep {
  float* w;
  const float* g;
  SgdRates rates;

  void apply(std::size_t p, std::size_t q, std::size_t n) const { mlxhog_sgd(w + p, g + q, nullptr, n, &rates); }
  void delta(std::size_t p, std::size_t q, std::size_t n, float* out) const {
    mlxhog_sgd(w + p, g + q, out, n, &rates);
  }
  void apply_cas(std::size_t p, std::size_t q, std::size_t n) const {
    float d[kStripe];
    delta(p, q, n, d);
    cas_add(w + p, d, n, widest_cas());
  }
};

struct MomentumStep {
  float* w;
  const float* g;
  float* m;  // private
  MomentumRates rates;

  void apply(std::size_t p, std::size_t q, std::size_t n) const {
    mlxhog_momentum(w + p, g + q, m + p, nullptr, n, &rates);
  }
  void delta(std::size_t p, std::size_t q, std::size_t n, float* out) const {
    mlxhog_momentum(w + p, g + q, m + p, out, n, &rates);
  }
  void apply_cas(std::size_t p, std::size_t q, std::size_t n) const {
    float d[kStripe];
    delta(p, q, n, d);
    cas_add(w + p, d, n, widest_cas());
  }
};

struct AdamwStep {
  float* w;
  const float* g;
  float* m;  // private
  float* v;  // private, or shared under the same lock as w
  AdamwRates rates;
  bool shared_v;

  void apply(std::size_t p, std::size_t q, std::size_t n) const {
    mlxhog_adamw(w + p, g + q, m + p, v + p, nullptr, n, &rates);
  }
  // Not with a shared v, which would move without its lock.
  void delta(std::size_t p, std::size_t q, std::size_t n, float* out) const {
    mlxhog_adamw(w + p, g + q, m + p, v + p, out, n, &rates);
  }
  void apply_cas(std::size_t p, std::size_t q, std::size_t n) const {
    float d[kStripe], square[kStripe];
    AdamwRates r = rates;
    float* second = v + p;
    if (shared_v) {
      // The mean itself moves by compare-and-swap; the step then takes the new values as they are.
      cas_decay(second, g + q, square, n, r.beta2, r.one_minus_beta2, r.grad_scale);
      second = square;
      r.beta2 = 1.0f;
      r.one_minus_beta2 = 0.0f;
    }
    mlxhog_adamw(w + p, g + q, m + p, second, d, n, &r);
    cas_add(w + p, d, n, widest_cas());
  }
};

// Add a step to `pending`, private and laid out as the parameter, and leave the parameter alone. Reads of the
// parameter race with its writers: elements are whole, of any age.
template <class Step>
void add_pending(const Step& step, float* pending, std::size_t p, std::size_t q, std::size_t n) {
  float d[kStripe];
  for (std::size_t i = 0; i < n; i += kStripe) {
    const std::size_t m = std::min(kStripe, n - i);
    step.delta(p + i, q + i, m, d);
    mlxhog_add(pending + p + i, d, m);
  }
}

}  // namespace mlxhog
