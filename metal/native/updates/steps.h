// The update of a run of elements: an add, or the step of an optimizer.
//
// `p` counts elements from the start of the parameter, `q` from the start of the gradient; they differ when
// the gradient holds only some rows. `apply` adds with SIMD (the caller holds the lock, or is racy);
// `apply_cas` adds at most kStripe elements by compare-and-swap. With one worker all ways give the same bits.
#pragma once

#include <algorithm>
#include <cstddef>

#include "cas_add.h"
#include "elements.h"
#include "moments.h"

namespace mlxhog {

inline constexpr std::size_t kStripe = 1024;  // floats behind one dense lock: 4 KiB

struct AddStep {
  float* w;
  const float* d;

  void apply(std::size_t p, std::size_t q, std::size_t n) const { mlxhog_add(w + p, d + q, n); }
  void apply_cas(std::size_t p, std::size_t q, std::size_t n) const { cas_add(w + p, d + q, n); }
};

// Where a step's direction comes from: a kernel of moments.h, or the gradient itself where there is none.
struct Moments {
  const Kernel* kernel;
  const float *g, *w;
  float* moments[kMaxMoments];  // each laid out as the parameter
  const float* rates;
  bool shared;  // by all workers: they move under the lock of the parameter, or by compare-and-swap

  // The direction of at most kStripe elements, in `u` or where it lies.
  const float* direction(std::size_t p, std::size_t q, std::size_t n, float* u, bool by_cas) const {
    if (kernel == nullptr) return g + q;
    float* at[kMaxMoments];
    for (std::size_t k = 0; k < kernel->moments; ++k) at[k] = moments[k] + p;
    if (by_cas && shared) by_swaps(at, q, n, u);
    else kernel->run(g + q, w + p, at, u, n, rates);
    return u;
  }

 private:
  void by_swaps(float* const* at, std::size_t q, std::size_t n, float* u) const {
    float s[kStripe], moved[kMaxMoments][kStripe], still[kMaxRates];
    float* means[kMaxMoments];
    std::copy_n(rates, kernel->rates, still);
    for (std::size_t i = 0; i < n; ++i) s[i] = rates[0] * g[q + i];
    for (std::size_t k = 0; k < kernel->moments; ++k) {
      cas_mean(at[k], s, means[k] = moved[k], n, rates[1 + 2 * k], rates[2 + 2 * k]);
      for (std::size_t i = 0; i < n; ++i) s[i] *= s[i];
      still[1 + 2 * k] = 1.0f, still[2 + 2 * k] = 0.0f;  // the direction takes the new means without moving them again
    }
    if (kernel->moments == 2) still[0] = 0.0f;  // Adam's takes them alone, and 0 times an infinite square is NaN
    kernel->run(g + q, nullptr, means, u, n, still);
  }
};

// The step of a rule: its direction, written to the parameter. Where `last` is given it records the step: prev = last,
// last = d, both shared, laid out as the parameter and written under its lock; without a lock two workers' steps may
// follow each other in either order. `pending`, private and laid out as the parameter, takes the step in its place; the
// parameter is then read in a race with its writers, whole elements of any age. `out` takes the direction alone.
struct Step {
  Moments moments;
  float* w;
  const float* rates;  // of mlxhog_delta
  float *last = nullptr, *prev = nullptr, *pending = nullptr, *out = nullptr;

  void apply(std::size_t p, std::size_t q, std::size_t n) const {
    for (std::size_t i = 0; i < n; i += kStripe) apply_stripe(p + i, q + i, std::min(kStripe, n - i), false);
  }
  void apply_cas(std::size_t p, std::size_t q, std::size_t n) const { apply_stripe(p, q, n, true); }

 private:
  void apply_stripe(std::size_t p, std::size_t q, std::size_t n, bool by_cas) const {
    float room[kStripe], d[kStripe];
    const float* u = moments.direction(p, q, n, out != nullptr ? out + q : room, by_cas);
    if (out != nullptr) return;
    if (last == nullptr && pending == nullptr && !by_cas) return mlxhog_write(w + p, u, n, rates);
    mlxhog_delta(w + p, u, d, n, rates);
    if (last != nullptr) mlxhog_record(last + p, prev + p, d, n);
    if (by_cas) cas_add(w + p, d, n);
    else mlxhog_add((pending != nullptr ? pending : w) + p, d, n);
  }
};

}  // namespace mlxhog
