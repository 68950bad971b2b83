#include "weight.h"

#include <algorithm>
#include <bit>
#include <cmath>

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

template <int kBits>
MLXHOG_INLINE void quantize_group(Index group, const float* from, std::uint32_t* words, float& scale, float& offset) {
  constexpr float kTop = (1 << kBits) - 1;
  constexpr int kPerWord = 32 / kBits;
  float low = from[0], high = from[0];
#pragma omp simd reduction(min : low) reduction(max : high)
  for (Index j = 0; j < group; ++j) {
    low = std::min(low, from[j]);
    high = std::max(high, from[j]);
  }
  const bool from_low = std::abs(low) > std::abs(high);
  const float edge = from_low ? low : high;
  scale = std::max((high - low) / kTop, 1e-7f) * (from_low ? 1.0f : -1.0f);
  const float steps = std::rint(edge / scale);
  if (steps != 0.0f) scale = edge / steps;
  offset = steps != 0.0f ? edge : 0.0f;
  for (Index word = 0; word < group / kPerWord; ++word) {
    std::uint32_t all = 0;
    for (int k = 0; k < kPerWord; ++k) {
      const float q = std::rint((from[word * kPerWord + k] - offset) / scale);
      all |= static_cast<std::uint32_t>(q > 0.0f ? std::min(q, kTop) : 0.0f) << (kBits * k);
    }
    words[word] = all;
  }
}

MLXHOG_CLONES void quantize_groups(Index groups, Index group, int bits, const float* from, std::uint32_t* words,
                                   float* scales, float* offsets) {
  for (Index g = 0; g < groups; ++g, from += group, words += group * bits / 32) {
    if (bits == 4) quantize_group<4>(group, from, words, scales[g], offsets[g]);
    else quantize_group<8>(group, from, words, scales[g], offsets[g]);
  }
}

}  // namespace

void quantize(Index rows, Index in, Index group, int bits, const float* from, std::uint32_t* packed, float* scales,
              float* offsets, int threads) {
  const Index groups = in / group;
  in_pieces(rows, std::max<Index>(1, (1 << 15) / std::max<Index>(1, in)), threads, [&](Index row, Index n) {
    quantize_groups(n * groups, group, bits, from + row * in, packed + row * in * bits / 32, scales + row * groups,
                    offsets + row * groups);
  });
}

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
