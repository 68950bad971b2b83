#include "skinny_gemm.h"

#include <algorithm>

#include "pool.h"

namespace mlxhog {
namespace {

// Multiplications a thread has to have: waking one costs about 10 us, in which a core reads 300 KiB of weights.
constexpr Index kWorthAThread = 1 << 19;

// Sums of a dot product. NEON has 32 vectors of 4 floats: tiles of 4 x 4 or 8 x 1 vectors stay in them, four times as
// much does not.
#if defined(__aarch64__)
constexpr Index kLanes = 4;
#else
constexpr Index kLanes = 16;
#endif
// Floats of weights that are fetched ahead, rounded to whole tiles: a tile's rows are too short for the processor to
// see a stream in them. Without it 25 MB of weights take nearly twice as long (V 50,304, d 128).
constexpr Index kAhead = 4096;

using Sums = float __attribute__((vector_size(kLanes * sizeof(float))));

MLXHOG_INLINE float sum(const Sums& lanes) {
  float parts[kLanes];
  store(lanes, parts);
  for (Index half = kLanes / 2; half; half /= 2)
    for (Index j = 0; j < half; ++j) parts[j] += parts[j + half];
  return parts[0];
}

// Dot products of `Weights` rows of W with `Inputs` rows of x.
template <int Weights, int Inputs>
MLXHOG_INLINE void tile(Index in, const float* w, const float* x, float* dots) {
  Sums sums[Weights][Inputs] = {};
  const Index tile_floats = std::max<Index>(1, Weights * in);
  const float* next = w + std::max<Index>(1, kAhead / tile_floats) * tile_floats;  // may be beyond the end: only a hint
  const auto add = [&](Index j, Index count) MLXHOG_ALWAYS {
    Sums inputs[Inputs], weights;
#pragma GCC unroll 8
    for (int c = 0; c < Inputs; ++c) load(x + c * in + j, inputs[c], count);
#pragma GCC unroll 8
    for (int r = 0; r < Weights; ++r) {
      __builtin_prefetch(next + r * in + j);
      load(w + r * in + j, weights, count);
#pragma GCC unroll 8
      for (int c = 0; c < Inputs; ++c) sums[r][c] += weights * inputs[c];
    }
  };
  Index j = 0;
  for (; j + kLanes <= in; j += kLanes) add(j, kLanes);
  if (j < in) add(j, in - j);
  for (int r = 0; r < Weights; ++r)
    for (int c = 0; c < Inputs; ++c) dots[r * Inputs + c] = sum(sums[r][c]);
}

template <int Weights, int Inputs>
MLXHOG_INLINE void store_dots(const SkinnyLinear& map, Index first_out, Index first_row, const float* dots) {
  for (int r = 0; r < Weights; ++r)
    for (int c = 0; c < Inputs; ++c) {
      const float value = dots[r * Inputs + c] + (map.bias ? map.bias[first_out + r] : 0.0f);
      float& y = map.y[(first_row + c) * map.out + first_out + r];
      y = map.add ? y + value : value;
    }
}

template <int Weights, int Inputs>
MLXHOG_INLINE void one_tile(Index in, const float* x, const SkinnyLinear& map, Index first_out, Index first_row) {
  float dots[Weights * Inputs];
  tile<Weights, Inputs>(in, map.weight + first_out * in, x + first_row * in, dots);
  store_dots<Weights, Inputs>(map, first_out, first_row, dots);
}

// Outputs [first, last) of a map, for all rows of x: tiles of 4 x 4, or of 8 x 1, whose 8 sums hide the latency of FMA.
MLXHOG_CLONES void outputs(Index rows, Index in, const float* x, const SkinnyLinear& map, Index first, Index last) {
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

// -- as many rows as lanes -------------------------------------------------------------------------------------------
// With a row in each lane nothing has to be summed across lanes, which is most of the work above where rows are short.
// The kLanes sums of a dot product, and the order in which they are added up, are those of `tile`.

constexpr Index kGroup = kLaneCount;  // rows, in as many lanes
constexpr Index kManyRows = 8;  // from here on lanes that no row fills cost less than sums across lanes
constexpr int kOutputs = 4;     // of a tile: one chain each; AVX2 has registers for these

// x (rows, in) as (group, in, kGroup): the rows of each group beside each other; lanes without a row are zero.
std::vector<float> rows_in_lanes(Index rows, Index in, const float* x) {
  const Index groups = (rows + kGroup - 1) / kGroup;
  std::vector<float> lanes(groups * in * kGroup);
  for (Index r = 0; r < rows; ++r) {
    float* to = lanes.data() + r / kGroup * in * kGroup + r % kGroup;
    for (Index j = 0; j < in; ++j) to[j * kGroup] = x[r * in + j];
  }
  return lanes;
}

// Dot products of `Weights` rows of W with the rows in the lanes of x (in, kGroup).
template <int Weights>
MLXHOG_INLINE void lanes_tile(Index in, const float* w, const float* x, Lanes (&dots)[Weights]) {
  Lanes sums[kLanes][Weights];
  for (Index lane = 0; lane < kLanes; ++lane) {
    Lanes chains[Weights] = {};
    for (Index j = lane; j < in; j += kLanes) {
      Lanes inputs;
      load(x + j * kGroup, inputs);
#pragma GCC unroll 8
      for (int r = 0; r < Weights; ++r) chains[r] += w[r * in + j] * inputs;
    }
#pragma GCC unroll 8
    for (int r = 0; r < Weights; ++r) sums[lane][r] = chains[r];
  }
  for (Index half = kLanes / 2; half; half /= 2)
    for (Index lane = 0; lane < half; ++lane)
#pragma GCC unroll 8
      for (int r = 0; r < Weights; ++r) sums[lane][r] += sums[lane + half][r];
  for (int r = 0; r < Weights; ++r) dots[r] = sums[0][r];
}

template <int Weights>
MLXHOG_INLINE void one_lanes_tile(Index rows, Index in, const float* lanes, const SkinnyLinear& map, Index first_out) {
  for (Index first = 0; first < rows; first += kGroup) {
    Lanes dots[Weights];
    lanes_tile<Weights>(in, map.weight + first_out * in, lanes + first * in, dots);
    const Index count = std::min(kGroup, rows - first);
    for (int r = 0; r < Weights; ++r) {
      const float bias = map.bias ? map.bias[first_out + r] : 0.0f;
      float values[kGroup];
      store(dots[r], values);
      for (Index c = 0; c < count; ++c) {
        const float value = values[c] + bias;
        float& y = map.y[(first + c) * map.out + first_out + r];
        y = map.add ? y + value : value;
      }
    }
  }
}

// As `outputs`, with rows in lanes.
MLXHOG_CLONES void lanes_outputs(Index rows, Index in, const float* lanes, const SkinnyLinear& map, Index first,
                                 Index last) {
  Index out = first;
  for (; out + kOutputs <= last; out += kOutputs) one_lanes_tile<kOutputs>(rows, in, lanes, map, out);
  for (; out < last; ++out) one_lanes_tile<1>(rows, in, lanes, map, out);
}

}  // namespace

void skinny_linears(Index rows, Index in, const float* x, const std::vector<SkinnyLinear>& maps, int threads) {
  Index total = 0;
  for (const SkinnyLinear& map : maps) total += map.out;
  const Index worth = std::max<Index>(1, total * in * rows / kWorthAThread);
  const Index pieces = std::clamp<Index>(threads, 1, worth);
  const bool many = rows >= kManyRows;
  const std::vector<float> lanes = many ? rows_in_lanes(rows, in, x) : std::vector<float>();
  parallel_for(pieces, static_cast<int>(pieces), [&](Index piece) {
    // Every piece takes its share of each map.
    for (const SkinnyLinear& map : maps) {
      const Index share = (map.out + pieces - 1) / pieces;
      const Index first = std::min(piece * share, map.out);
      const Index last = std::min(first + share, map.out);
      if (many) lanes_outputs(rows, in, lanes.data(), map, first, last);
      else outputs(rows, in, x, map, first, last);
    }
  });
}

}  // namespace mlxhog
