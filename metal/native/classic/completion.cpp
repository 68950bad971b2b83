#include "completion.h"

#include <array>
#include <type_traits>
#include <vector>

#include "../updates/simd.h"

namespace mlxhog::classic {
namespace {

// Sixteen floats of a row as one value, by the rules of updates/elements.h: each element is loaded once and stored once
// per pass, and never torn. Passed by reference only: the ABI of a vector by value differs between clones.
using Vector = float __attribute__((vector_size(kRowStep * sizeof(float))));

MLXHOG_INLINE void load(Vector& x, const float* from) {
#if MLXHOG_ATOMIC_KERNELS
  for (std::size_t i = 0; i < kRowStep; ++i) x[i] = element::load(from + i);
#else
  __builtin_memcpy(&x, from, sizeof x);  // of constant size: moves
#endif
}

MLXHOG_INLINE void store(float* to, const Vector& x) {
#if MLXHOG_ATOMIC_KERNELS
  for (std::size_t i = 0; i < kRowStep; ++i) element::store(to + i, x[i]);
#else
  __builtin_memcpy(to, &x, sizeof x);
#endif
}

// The sum of 16 partial sums, halved: 16 -> 8 -> 4 -> 2 -> 1, whatever the machine's vectors are.
MLXHOG_INLINE float total(const Vector& v) {
  const auto eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  const auto two = four + __builtin_shufflevector(four, four, 2, 3, 2, 3);
  return two[0] + two[1];
}

// The inner loop for steps of one example on rows of `kWidth` floats; 0 is any width and any batch.
template <std::size_t kWidth>
class Loop {
 public:
  // Per example of a step: both rows as they were read, and the error of their product. Those of one example
  // of a known width stay in registers.
  struct Scratch {
    Scratch(const Loop& loop, std::size_t batch, bool) {
      if constexpr (kWidth == 0) {
        rows.resize(batch * 2 * loop.width());
        errors.resize(batch);
      }
    }
    std::conditional_t<kWidth == 0, std::vector<float>, std::array<float, 2 * kWidth>> rows;
    std::conditional_t<kWidth == 0, std::vector<float>, std::array<float, 1>> errors;
  };

  explicit Loop(const Completion& problem) : p_(problem) {}

  std::size_t n() const { return p_.n(); }
  std::size_t words() const { return p_.words(); }

  MLXHOG_PREFETCH void prefetch(const std::int32_t* order, std::size_t i, std::size_t count) const {
    p_.ratings.prefetch(order, i, count, [&](const Pair& r) __attribute__((always_inline)) {
      for (std::size_t k = 0; k < width(); k += kRowStep) {
        __builtin_prefetch(p_.left + r.first * width() + k, 1);
        __builtin_prefetch(p_.right + r.second * width() + k, 1);
      }
    });
  }

  template <class Access>
  MLXHOG_INLINE void read(const std::int32_t* examples, std::size_t b, const Access&, Scratch& scratch) const {
    for (std::size_t k = 0; k < examples_of(b); ++k) {
      const Pair r = p_.ratings[examples[k]];
      const float* left = p_.left + r.first * width();
      const float* right = p_.right + r.second * width();
      float* old_left = scratch.rows.data() + 2 * k * width();
      float* old_right = old_left + width();
      Vector sums = {};
      for (std::size_t j = 0; j < width(); j += kRowStep) {
        Vector l, v;
        load(l, left + j);
        load(v, right + j);
        sums += l * v;
        store(old_left + j, l);
        store(old_right + j, v);
      }
      scratch.errors[k] = total(sums) - r.value;
    }
  }

  template <class Access>
  MLXHOG_INLINE void write(const std::int32_t* examples, std::size_t b, const Access& access,
                               const Scratch& scratch, float step) const {
    for (std::size_t k = 0; k < examples_of(b); ++k) {
      const Pair r = p_.ratings[examples[k]];
      const float* old_left = scratch.rows.data() + 2 * k * width();
      const float* old_right = old_left + width();
      const float pull = 2.0f * step * scratch.errors[k];
      const float shrink_left = step * p_.shrink_users[r.first];
      const float shrink_right = step * p_.shrink_items[r.second];
      access.row(p_.user_word0 + r.first,
                 [&] { subtract(p_.left + r.first * width(), pull, old_right, shrink_left, old_left); });
      access.row(p_.item_word0 + r.second,
                 [&] { subtract(p_.right + r.second * width(), pull, old_left, shrink_right, old_right); });
    }
  }

  template <class Visit>
  void touched(const std::int32_t* examples, std::size_t b, const Scratch&, Visit visit) const {
    for (std::size_t k = 0; k < examples_of(b); ++k) {
      const Pair r = p_.ratings[examples[k]];
      visit(p_.user_word0 + r.first);
      visit(p_.item_word0 + r.second);
    }
  }

 private:
  static constexpr std::size_t examples_of(std::size_t b) { return kWidth != 0 ? 1 : b; }
  MLXHOG_INLINE std::size_t width() const { return kWidth != 0 ? kWidth : p_.width; }

  // row -= pull * other + shrink * own
  MLXHOG_INLINE void subtract(float* row, float pull, const float* other, float shrink, const float* own) const {
    const element::LoopFence fence;
    for (std::size_t j = 0; j < width(); j += kRowStep) {
      Vector now, towards, old;
      load(now, row + j);
      load(towards, other + j);
      load(old, own + j);
      now -= pull * towards + shrink * old;
      store(row + j, now);
    }
  }

  const Completion& p_;
};

// One function per width, so that each of its clones holds the whole loop.
MLXHOG_WHOLE_LOOP std::size_t run_16(Scheme& scheme, const Completion& problem, const Share& share) {
  Loop<16> loop(problem);
  return run(scheme, loop, share);
}

MLXHOG_WHOLE_LOOP std::size_t run_32(Scheme& scheme, const Completion& problem, const Share& share) {
  Loop<32> loop(problem);
  return run(scheme, loop, share);
}

MLXHOG_WHOLE_LOOP std::size_t run_any(Scheme& scheme, const Completion& problem, const Share& share) {
  Loop<0> loop(problem);
  return run(scheme, loop, share);
}

}  // namespace

std::size_t run(Scheme& scheme, Completion& problem, const Share& share) {
  if (share.batch == 1 && problem.width == 16) return run_16(scheme, problem, share);
  if (share.batch == 1 && problem.width == 32) return run_32(scheme, problem, share);
  return run_any(scheme, problem, share);
}

double squared_error(const Completion& p) {
  double sum = 0.0;
  for (std::size_t e = 0; e < p.n(); ++e) {
    const Pair r = p.ratings[e];
    const float* left = p.left + r.first * p.width;
    const float* right = p.right + r.second * p.width;
    double product = 0.0;
    for (std::size_t j = 0; j < p.width; ++j) {
      product += static_cast<double>(Relaxed::load(left + j)) * static_cast<double>(Relaxed::load(right + j));
    }
    const double error = product - static_cast<double>(r.value);
    sum += error * error;
  }
  return sum;
}

}  // namespace mlxhog::classic
