#include "cas_add.h"

#include <bit>
#include <cstdint>

namespace mlxhog {
namespace {

static_assert(__atomic_always_lock_free(8, nullptr), "a 64-bit compare-and-swap must be lock-free");

inline void add_one(float* p, float d) {
  update_by_cas(p, [d](float x) { return x + d; });
}

using Word64 __attribute__((may_alias)) = std::uint64_t;  // two floats seen as one word

struct Two {
  float x[2];
};

// Relaxed, as update_by_cas.
inline void add_two(float* p, const float* d) {
  auto* word = reinterpret_cast<Word64*>(p);
  Word64 seen = __atomic_load_n(word, __ATOMIC_RELAXED), next;
  do {
    Two two = std::bit_cast<Two>(seen);
    two.x[0] += d[0];
    two.x[1] += d[1];
    next = std::bit_cast<Word64>(two);
  } while (!__atomic_compare_exchange_n(word, &seen, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

}  // namespace

void cas_add(float* w, const float* d, std::size_t n, int width) {
  std::size_t i = 0;
  if (width == 2) {
    if (n > 0 && reinterpret_cast<std::uintptr_t>(w) % sizeof(Word64) != 0) add_one(w, d[0]), i = 1;
    for (; i + 2 <= n; i += 2) add_two(w + i, d + i);
  }
  for (; i < n; ++i) add_one(w + i, d[i]);
}

void cas_add_at(float* w, const std::int32_t* index, const float* d, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) add_one(w + index[i], d[i]);
}

void cas_mean(float* mean, const float* x, float* out, std::size_t n, float beta, float one_minus_beta) {
  for (std::size_t i = 0; i < n; ++i) {
    const float part = one_minus_beta * x[i];
    out[i] = update_by_cas(mean + i, [=](float seen) { return beta * seen + part; });
  }
}

}  // namespace mlxhog
