#include "packed16.h"

#include <bit>

namespace mlxhog {
namespace {

// Conversions by hand: not every compiler we build with has _Float16, and none of ours has a bfloat16.
constexpr std::uint32_t kSign = 0x8000, kInfinity = 0x7f800000, kQuiet = 0x400000;

struct Half {
  static constexpr std::uint32_t kRebias = (127 - 15) << 23;
  static constexpr std::uint32_t kOverflows = 0x477ff000;  // 65520: halfway from the largest to infinity
  static constexpr std::uint32_t kSmallestNormal = 0x38800000;

  static float widen(std::uint32_t h) {
    const std::uint32_t sign = (h & kSign) << 16, magnitude = (h & 0x7fff) << 13;
    if (magnitude >= 0x1fu << 23) return std::bit_cast<float>(sign | kInfinity | magnitude);
    if (magnitude >= 1u << 23) return std::bit_cast<float>(sign | (magnitude + kRebias));
    const float tiny = static_cast<float>(magnitude >> 13) * 0x1p-24f;
    return sign ? -tiny : tiny;
  }

  static std::uint32_t round(float f) {
    std::uint32_t u = std::bit_cast<std::uint32_t>(f);
    const std::uint32_t sign = u >> 16 & kSign;
    u &= 0x7fffffff;
    if (u > kInfinity) return sign | 0x7e00;
    if (u >= kOverflows) return sign | 0x7c00;
    if (u < kSmallestNormal) {  // 0.5 has the last place of a subnormal half: the addition rounds
      const float shifted = std::bit_cast<float>(u) + 0.5f;
      return sign | (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0.5f));
    }
    return sign | (u - kRebias + 0xfff + (u >> 13 & 1)) >> 13;
  }
};

struct Bfloat {
  static float widen(std::uint32_t b) { return std::bit_cast<float>(b << 16); }

  static std::uint32_t round(float f) {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(f);
    if ((u & 0x7fffffff) > kInfinity) return (u | kQuiet) >> 16;
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
  }
};

template <class T>
std::uint32_t sum(std::uint32_t seen, std::uint32_t delta) {
  const std::uint32_t low = T::round(T::widen(seen & 0xffff) + T::widen(delta & 0xffff));
  const std::uint32_t high = T::round(T::widen(seen >> 16) + T::widen(delta >> 16));
  return high << 16 | low;
}

// Relaxed, as in cas_add.cpp: each word is a sum of its own, nothing is published through it.
template <class T>
bool add_word(std::uint32_t* word, std::uint32_t delta) {
  std::uint32_t seen = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (int tries = 0; tries < kPackedTries; ++tries) {
    const std::uint32_t next = sum<T>(seen, delta);
    if (__atomic_compare_exchange_n(word, &seen, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return true;
  }
  return false;
}

template <class T>
std::size_t add_words(std::uint32_t* words, const std::uint32_t* delta, std::size_t n) {
  std::size_t failures = 0;
  for (std::size_t i = 0; i < n; ++i) failures += !add_word<T>(words + i, delta[i]);
  return failures;
}

}  // namespace

std::size_t packed16_add(std::uint32_t* words, const std::uint32_t* delta, std::size_t n, Packed type) {
  return type == Packed::bfloat ? add_words<Bfloat>(words, delta, n) : add_words<Half>(words, delta, n);
}

}  // namespace mlxhog
