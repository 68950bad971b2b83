// Compare-and-swap adds on shared 16-bit floats, two of them in each 32-bit word.
//
// The CPU's half of `packed16_add` in metal/kernels: the same words, the same rounding, the same bound, so
// that CPU and GPU writers of one array lose none of each other's adds.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxhog {

enum class Packed : int { half, bfloat };

// Tries per word before it is left alone and counted; another writer succeeded in each of them.
inline constexpr int kPackedTries = 64;

// words[i] += delta[i], each half widened to float32, added, rounded to nearest even. Returns the number of
// words that were given up, unchanged by this call; 0 but for a starved writer.
// The swap compares bits, so a NaN is a value like any other and cannot keep the loop going.
std::size_t packed16_add(std::uint32_t* words, const std::uint32_t* delta, std::size_t n, Packed type);

}  // namespace mlxhog
