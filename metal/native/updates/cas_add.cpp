#include "cas_add.h"

#include <bit>
#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mlxhog {
namespace {

static_assert(__atomic_always_lock_free(8, nullptr), "a 64-bit compare-and-swap must be lock-free");

// Relaxed order everywhere in this file: every element is an independent sum, and nothing else is
// published through it; "step done" is the version counter's release store.

template <class Update>
inline float update_one(float* p, Update update) {
  float seen, next;
  __atomic_load(p, &seen, __ATOMIC_RELAXED);
  do {
    next = update(seen);
  } while (!__atomic_compare_exchange(p, &seen, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return next;
}

inline void add_one(float* p, float d) {
  update_one(p, [d](float x) { return x + d; });
}

using Word64 __attribute__((may_alias)) = std::uint64_t;  // two floats seen as one word

struct Two {
  float x[2];
};

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

#if defined(__x86_64__) && !MLXHOG_ATOMIC_KERNELS
struct Sixteen {
  float x[4];
};

// cmpxchg16b by hand: the compiler's 16-byte builtins call a library that may lock.
inline void add_four(float* p, const float* d) {
  auto* words = reinterpret_cast<Word64*>(p);
  std::uint64_t low = __atomic_load_n(words, __ATOMIC_RELAXED);
  std::uint64_t high = __atomic_load_n(words + 1, __ATOMIC_RELAXED);  // a mixed pair fails the comparison
  bool done;
  do {
    Two a = std::bit_cast<Two>(low), b = std::bit_cast<Two>(high);
    a.x[0] += d[0];
    a.x[1] += d[1];
    b.x[0] += d[2];
    b.x[1] += d[3];
    asm volatile("lock cmpxchg16b %[to]"
                 : [to] "+m"(*reinterpret_cast<Sixteen*>(p)), "=@ccz"(done), "+a"(low), "+d"(high)
                 : "b"(std::bit_cast<std::uint64_t>(a)), "c"(std::bit_cast<std::uint64_t>(b)));
  } while (!done);
}
#endif

template <int kWidth, class Add>
void add_wide(float* w, const float* d, std::size_t n, Add add) {
  std::size_t i = 0;
  const auto misaligned = [&] { return reinterpret_cast<std::uintptr_t>(w + i) % (kWidth * sizeof(float)) != 0; };
  while (i < n && misaligned()) add_one(w + i, d[i]), ++i;
  for (; i + kWidth <= n; i += kWidth) add(w + i, d + i);
  for (; i < n; ++i) add_one(w + i, d[i]);
}

}  // namespace

int widest_cas() {
#if defined(__x86_64__) && !MLXHOG_ATOMIC_KERNELS
  // Asked once: under a hypervisor cpuid traps and costs microseconds.
  static const int width = [] {
    unsigned eax, ebx, ecx = 0, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_CMPXCHG16B) ? 4 : 2;
  }();
  return width;
#elif defined(__x86_64__)
  return 2;
#else
  return 1;
#endif
}

void cas_add(float* w, const float* d, std::size_t n, int width) {
#if defined(__x86_64__) && !MLXHOG_ATOMIC_KERNELS
  if (width == 4) return add_wide<4>(w, d, n, add_four);
#endif
  if (width == 2) return add_wide<2>(w, d, n, add_two);
  add_wide<1>(w, d, n, [](float* p, const float* x) { add_one(p, *x); });
}

void cas_add_at(float* w, const std::int32_t* index, const float* d, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) add_one(w + index[i], d[i]);
}

void cas_mean(float* mean, const float* x, float* out, std::size_t n, float beta, float one_minus_beta) {
  for (std::size_t i = 0; i < n; ++i) {
    const float part = one_minus_beta * x[i];
    out[i] = update_one(mean + i, [=](float seen) { return beta * seen + part; });
  }
}

}  // namespace mlxhog
