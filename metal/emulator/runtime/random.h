// A small seeded generator (Steele et al. 2014, SplitMix64): schedule fuzzing repeats exactly from its seed.
#pragma once

#include <cstdint>
#include <utility>

namespace metal_emulator {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }

  // Uniform enough in [0, n).
  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>((next() >> 32) * n >> 32); }

  template <typename T>
  void shuffle(T* items, std::uint32_t n) {
    for (std::uint32_t i = n; i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }

 private:
  std::uint64_t state_;
};

}  // namespace metal_emulator
