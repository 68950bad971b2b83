#include "weight.h"

#include <algorithm>
#include <bit>

#include "pool.h"

namespace mlxhog {
namespace {

MLXHOG_CLONES void widen(Index count, const std::uint16_t* from, float* to) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) to[j] = std::bit_cast<float>(static_cast<std::uint32_t>(from[j]) << 16);
}

template <int kBits>
MLXHOG_INLINE void unpack(Index words, float scale, float offset, const std::uint32_t* from, float* to) {
  constexpr int kPerWord = 32 / kBits;
  for (Index word = 0; word < words; ++word) {
    const std::uint32_t all = from[word];
#pragma omp simd
    for (int k = 0; k < kPerWord; ++k) {
      const auto q = static_cast<std::int32_t>(all >> (kBits * k) & ((1u << kBits) - 1));
      to[word * kPerWord + k] = scale * static_cast<float>(q) + offset;
    }
  }
}

// `words` is the length of a group.
MLXHOG_CLONES void dequantize(Index groups, Index words, int bits, const float* scales, const float* offsets,
                              const std::uint32_t* from, float* to) {
  for (Index g = 0; g < groups; ++g, from += words, to += words * 32 / bits) {
    if (bits == 4) unpack<4>(words, scales[g], offsets[g], from, to);
    else unpack<8>(words, scales[g], offsets[g], from, to);
  }
}

}  // namespace

const float* Weight::rows(Index first, Index count, Index in, Buffer& scratch, Index room, int threads) const {
  if (floats) return floats + first * in;
  if (!scratch) scratch = uninitialized(room);
  constexpr Index kPiece = 1 << 15;  // floats
  in_pieces(count, std::max<Index>(1, kPiece / std::max<Index>(1, in)), threads, [&](Index row, Index n) {
    float* to = scratch.get() + row * in;
    if (bf16) return widen(n * in, bf16 + (first + row) * in, to);
    const Index groups = in / group, words = group * bits / 32, begin = (first + row) * groups;
    dequantize(n * groups, words, static_cast<int>(bits), scales + begin, offsets + begin, packed + begin * words, to);
  });
  return scratch.get();
}

}  // namespace mlxhog
