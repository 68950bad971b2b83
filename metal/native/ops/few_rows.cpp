#include "few_rows.h"

#include <algorithm>
#include <cstring>

#include "pool.h"

namespace mlxhog {
namespace {

// Multiplications a thread has to have: waking one costs about 10 us, in which a core reads 300 KiB of weights.
constexpr Index kWorthAThread = 1 << 19;

constexpr Index kLanes = 16;
// Floats of weights that are fetched ahead, rounded to whole tiles: a tile's rows are too short for the processor to
// see a stream in them. Without it 25 MB of weights take nearly twice as long (V 50,304, d 128).
constexpr Index kAhead = 4096;

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

MLXHOG_INLINE void load(const float* from, Lanes& to) { std::memcpy(&to, from, sizeof to); }

MLXHOG_INLINE float sum(const Lanes& lanes) {
  float parts[kLanes];
  std::memcpy(parts, &lanes, sizeof parts);
  for (Index half = kLanes / 2; half; half /= 2)
    for (Index j = 0; j < half; ++j) parts[j] += parts[j + half];
  return parts[0];
}

// Dot products of `Weights` rows of W with `Inputs` rows of x.
template <int Weights, int Inputs>
MLXHOG_INLINE void tile(Index in, const float* w, const float* x, float* dots) {
  Lanes sums[Weights][Inputs] = {};
  const Index tile_floats = std::max<Index>(1, Weights * in);
  const float* next = w + std::max<Index>(1, kAhead / tile_floats) * tile_floats;  // may be beyond the end: only a hint
  Index j = 0;
  for (; j + kLanes <= in; j += kLanes) {
    Lanes inputs[Inputs], weights;
#pragma GCC unroll 8
    for (int c = 0; c < Inputs; ++c) load(x + c * in + j, inputs[c]);
#pragma GCC unroll 8
    for (int r = 0; r < Weights; ++r) {
      __builtin_prefetch(next + r * in + j);
      load(w + r * in + j, weights);
#pragma GCC unroll 8
      for (int c = 0; c < Inputs; ++c) sums[r][c] += weights * inputs[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Weights; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < Inputs; ++c) {
      float dot = sum(sums[r][c]);
      for (Index tail = j; tail < in; ++tail) dot += w[r * in + tail] * x[c * in + tail];
      dots[r * Inputs + c] = dot;
    }
}

template <int Weights, int Inputs>
MLXHOG_INLINE void store(const FewRowsMap& map, Index first_out, Index first_row, const float* dots) {
  for (int r = 0; r < Weights; ++r)
    for (int c = 0; c < Inputs; ++c) {
      const float value = dots[r * Inputs + c] + (map.bias ? map.bias[first_out + r] : 0.0f);
      float& y = map.y[(first_row + c) * map.out + first_out + r];
      y = map.add ? y + value : value;
    }
}

template <int Weights, int Inputs>
MLXHOG_INLINE void one_tile(Index in, const float* x, const FewRowsMap& map, Index first_out, Index first_row) {
  float dots[Weights * Inputs];
  tile<Weights, Inputs>(in, map.weight + first_out * in, x + first_row * in, dots);
  store<Weights, Inputs>(map, first_out, first_row, dots);
}

// Outputs [first, last) of a map, for all rows of x: tiles of 4 x 4, or of 8 x 1, which has chains enough alone.
MLXHOG_CLONES void outputs(Index rows, Index in, const float* x, const FewRowsMap& map, Index first, Index last) {
  const Index height = rows >= 4 ? 4 : 8;
  Index out = first;
  for (; out + height <= last; out += height) {
    Index row = 0;
    if (height == 4)
      for (; row + 4 <= rows; row += 4) one_tile<4, 4>(in, x, map, out, row);
    for (; row < rows; ++row) {
      if (height == 8) one_tile<8, 1>(in, x, map, out, row);
      else one_tile<4, 1>(in, x, map, out, row);
    }
  }
  for (; out < last; ++out)
    for (Index row = 0; row < rows; ++row) one_tile<1, 1>(in, x, map, out, row);
}

}  // namespace

void few_rows_maps(Index rows, Index in, const float* x, const std::vector<FewRowsMap>& maps, int threads) {
  Index total = 0;
  for (const FewRowsMap& map : maps) total += map.out;
  const Index worth = std::max<Index>(1, total * in * rows / kWorthAThread);
  const Index pieces = std::clamp<Index>(threads, 1, worth);
  parallel_for(pieces, static_cast<int>(pieces), [&](Index piece) {
    // Every piece takes its share of each map.
    for (const FewRowsMap& map : maps) {
      const Index share = (map.out + pieces - 1) / pieces;
      const Index first = std::min(piece * share, map.out);
      outputs(rows, in, x, map, first, std::min(first + share, map.out));
    }
  });
}

}  // namespace mlxhog
