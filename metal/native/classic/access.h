// How a problem's inner loop reads and writes shared parameters: one policy per write mode.
//
//   load(p)          one element; may be old or new, never torn
//   update(p, f)     *p = f(*p) for a scalar, with the mode's promise
//   update(p, n, f)  the same for n <= kGroup distinct scalars, *p[j] = f(j, *p[j]); one after the other costs
//                    half as much again, because no load may pass a store that could be to its address
//   row(word, body)  runs body() for a parameter whose exclusion unit is the row behind lock word `word`;
//                    inside, load and store the row's elements with `load` and `store`, which hold no lock
//   cell(x, u)       where coordinate u of the vector x lives
//
// Every access is a relaxed atomic: a plain move on x86-64 and ARM64, no order, no tearing, defined behavior. With one
// worker all policies give the same bits, if f is the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../updates/cas_add.h"
#include "../updates/locks.h"

// For a problem's prefetch(): else GCC finds that the function has no effect, and drops the calls.
#define MLXHOG_PREFETCH inline __attribute__((always_inline))

namespace mlxhog::classic {

inline constexpr std::size_t kGroup = 4;

// Lost updates are the contract: load and store are two steps. Also where no other worker writes: private copies, locks,
// turns.
struct Relaxed {
  static float load(const float* p) {
    float value;
    __atomic_load(p, &value, __ATOMIC_RELAXED);
    return value;
  }
  static void store(float* p, float value) { __atomic_store(p, &value, __ATOMIC_RELAXED); }

  template <class F>
  void update(float* p, F f) const {
    store(p, f(load(p)));
  }
  template <class F>
  void update(float* const* p, std::size_t n, F f) const {
    float next[kGroup];
#pragma GCC unroll 4
    for (std::size_t j = 0; j < n; ++j) next[j] = f(j, load(p[j]));
#pragma GCC unroll 4
    for (std::size_t j = 0; j < n; ++j) store(p[j], next[j]);
  }
  template <class Body>
  void row(std::size_t, Body body) const {
    body();
  }
  float* cell(float* x, std::size_t u) const { return x + u; }
};

// No update is lost: compare-and-swap for a scalar, the row's lock for a row. One parameter takes one of the
// two, never both: a swap ignores locks.
struct Lossless : Relaxed {
  Locks* locks = nullptr;
  std::size_t word0 = 0;

  template <class F>
  void update(float* p, F f) const {
    update_by_cas(p, f);
  }
  template <class F>
  void update(float* const* p, std::size_t n, F f) const {
    for (std::size_t j = 0; j < n; ++j) update(p[j], [&](float v) { return f(j, v); });
  }
  template <class Body>
  void row(std::size_t word, Body body) const {
    locks->lock(word0 + word);
    body();
    locks->unlock(word0 + word);
  }
};

// Coordinates below `hot` live in a private copy that is merged under locks every so often (scheme.h); the
// others are shared and racy.
struct HotCold : Relaxed {
  float* mine = nullptr;
  std::size_t hot = 0;

  // A conditional move: two loops, over a row's head and tail, would mispredict branches.
  float* cell(float* x, std::size_t u) const { return (u < hot ? mine : x) + u; }
};

}  // namespace mlxhog::classic
