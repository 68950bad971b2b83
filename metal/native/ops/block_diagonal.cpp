// Several block-diagonal maps of one input: slice g of y_j is slice g of x times W_j[g]^T, plus b_j.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "gemm.h"
#include "rows.h"
#include "shapes.h"

namespace mlxhog {
namespace {

// One map: weight (groups, out, in), sizes of a block; bias (groups * out) or null; y (rows, groups * out). Or its
// gradients: dy in; d_weight, and d_bias unless null, written.
struct DiagonalMap {
  Index groups, out, in;
  const float *weight, *bias, *dy;
  float *y, *d_weight, *d_bias;
};
using DiagonalMaps = std::vector<DiagonalMap>;

// -- square blocks of 1, 2, 4, 8 or 16 numbers: a vector of 16 lanes has whole blocks, and each of its numbers is spread
// over the lanes of its block
// ------------------------------------------------------------------------------------------

// The coefficients as vectors: coefficient k of lane c at [k * padded + c], zeros in the last lanes.
struct SmallBlocks {
  Index size, width, padded;  // of a block; of a row; the same in whole vectors
  std::vector<float> coefficients;

  // W (width / size, size, size); transposed: out[i] = sum_o W[o, i] in[o].
  SmallBlocks(Index size, Index width, const float* weight, bool transposed)
      : size(size), width(width), padded(whole_lanes(width)), coefficients(size * padded) {
    for (Index c = 0; c < width; ++c)
      for (Index k = 0; k < size; ++k) {
        const float* block = weight + c / size * size * size;
        coefficients[k * padded + c] = transposed ? block[k * size + c % size] : block[c % size * size + k];
      }
  }
};

// Lane by lane the number `At` of the lane's block.
template <int Size, int At>
MLXHOG_INLINE void spread(const Lanes& v, Lanes& out) {
  [&]<int... Lane>(std::integer_sequence<int, Lane...>) MLXHOG_ALWAYS {
    out = __builtin_shufflevector(v, v, (Lane / Size * Size + At)...);
  }(std::make_integer_sequence<int, kLaneCount>());
}

template <int Size, int... At>
MLXHOG_INLINE void map_lanes(const SmallBlocks& s, const float* x, const float* base, float* y,
                             std::integer_sequence<int, At...>) {
  for (Index c = 0; c < s.width; c += kLaneCount) {
    const Index count = s.width - c;
    Lanes v, sum{}, number;
    load(x + c, v, count);
    if (base) load(base + c, sum, count);
    const float* at = s.coefficients.data() + c;
    ((spread<Size, At>(v, number), sum += lanes(at + At * s.padded) * number), ...);
    store(sum, y + c, count);
  }
}

template <int Size, int... At>
MLXHOG_INLINE void add_lanes(const SmallBlocks& s, const float* x, const float* dy, float* d_coefficients,
                             std::integer_sequence<int, At...>) {
  for (Index c = 0; c < s.width; c += kLaneCount) {
    Lanes v, d, number;
    load(x + c, v, s.width - c);
    load(dy + c, d, s.width - c);
    ((spread<Size, At>(v, number), lanes(d_coefficients + c + At * s.padded) += d * number), ...);
  }
}

bool is_small_block(Index out, Index in) {
  return out == in && (in == 1 || in == 2 || in == 4 || in == 8 || in == 16);
}

void to_blocks(const SmallBlocks& s, const float* coefficients, float* weight) {
  for (Index c = 0; c < s.width; ++c)
    for (Index k = 0; k < s.size; ++k) weight[c * s.size + k] = coefficients[k * s.padded + c];
}

// Calls use(0, 1, .. size - 1) as a sequence of constants.
template <class Use>
MLXHOG_INLINE void of_size(Index size, const Use& use) {
  switch (size) {
    case 1: return use(std::make_integer_sequence<int, 1>());
    case 2: return use(std::make_integer_sequence<int, 2>());
    case 4: return use(std::make_integer_sequence<int, 4>());
    case 8: return use(std::make_integer_sequence<int, 8>());
    default: return use(std::make_integer_sequence<int, 16>());
  }
}

MLXHOG_CLONES void map_row(const SmallBlocks& s, const float* x, const float* base, float* y) {
  of_size(s.size, [&]<int... At>(std::integer_sequence<int, At...> all) MLXHOG_ALWAYS {
    map_lanes<sizeof...(At)>(s, x, base, y, all);
  });
}

MLXHOG_CLONES void add_outer_products(const SmallBlocks& s, const float* x, const float* dy,
                                      float* d_coefficients) {
  of_size(s.size, [&]<int... At>(std::integer_sequence<int, At...> all) MLXHOG_ALWAYS {
    add_lanes<sizeof...(At)>(s, x, dy, d_coefficients, all);
  });
}

// -- all blocks

// Coefficients of the maps of small blocks; the others have none.
std::vector<std::optional<SmallBlocks>> small_blocks_of(const DiagonalMaps& maps, bool transposed) {
  std::vector<std::optional<SmallBlocks>> found;
  for (const DiagonalMap& map : maps)
    found.push_back(is_small_block(map.out, map.in)
                        ? std::optional<SmallBlocks>(std::in_place, map.in, map.groups * map.in, map.weight, transposed)
                        : std::nullopt);
  return found;
}

void large_forward(Index rows, Index width, const float* x, const DiagonalMap& map, int threads) {
  const Index width_out = map.groups * map.out, block = map.out * map.in;
  std::vector<float> blocks(map.groups * block);  // W as (groups, in, out)
  for (Index g = 0; g < map.groups; ++g)
    transpose(map.weight + g * block, map.in, map.out, map.in, &blocks[g * block]);
  in_pieces(rows, kRowsPerTask, threads, [&](Index first, Index count) {
    const float* x_rows = x + first * width;
    float* y_rows = map.y + first * width_out;
    if (map.bias) copy_rows(count, width_out, map.bias, 0, y_rows, width_out);
    for (Index g = 0; g < map.groups; ++g)
      gemm(count, map.out, map.in, x_rows + g * map.in, width, 1, &blocks[g * block], map.out, y_rows + g * map.out,
           width_out, map.bias != nullptr);
  });
}

void large_weight_gradient(Index rows, Index width, const float* x, const DiagonalMap& map, int threads) {
  const Index width_out = map.groups * map.out, block = map.out * map.in;
  parallel_for(map.groups, threads, [&](Index g) {
    gemm(map.out, map.in, rows, map.dy + g * map.out, 1, width_out, x + g * map.in, width, map.d_weight + g * block,
         map.in, false);
  });
}

void large_input_gradient(Index rows, Index width, const DiagonalMap& map, float* dx, bool accumulate,
                          int threads) {
  const Index width_out = map.groups * map.out, block = map.out * map.in;
  in_pieces(rows, kRowsPerTask, threads, [&](Index first, Index count) {
    for (Index g = 0; g < map.groups; ++g)
      gemm(count, map.in, map.out, map.dy + first * width_out + g * map.out, width_out, 1, map.weight + g * block,
           map.in, dx + first * width + g * map.in, width, accumulate);
  });
}

void bias_gradient(Index rows, const DiagonalMap& map, int threads) {
  const Index width = map.groups * map.out;
  const auto sum = summed_over_rows(rows, width, threads, [&](Index first, Index count, float* part) {
    add_rows(count, width, map.dy + first * width, width, part);
  });
  std::copy(sum.begin(), sum.end(), map.d_bias);
}

void block_diagonal_forward(Index rows, Index width, const float* x, const DiagonalMaps& maps,
                            int threads) {
  const auto small = small_blocks_of(maps, false);
  in_pieces(rows, kRowsPerTask, threads, [&](Index first, Index count) {
    for (Index at = first * width; at < (first + count) * width; at += width)
      for (std::size_t j = 0; j < maps.size(); ++j)
        if (small[j]) map_row(*small[j], x + at, maps[j].bias, maps[j].y + at);
  });
  for (std::size_t j = 0; j < maps.size(); ++j)
    if (!small[j]) large_forward(rows, width, x, maps[j], threads);
}

void block_diagonal_backward(Index rows, Index width, const float* x, const DiagonalMaps& maps,
                             float* dx, int threads) {
  const auto small = small_blocks_of(maps, true);
  Index all = 0;  // coefficients of all small blocks
  for (const auto& blocks : small)
    if (blocks) all += static_cast<Index>(blocks->coefficients.size());
  const auto sum = summed_over_rows(rows, all, threads, [&](Index first, Index count, float* part) {
    for (Index at = first * width; at < (first + count) * width; at += width) {
      const float* before = nullptr;
      float* d_coefficients = part;
      for (std::size_t j = 0; j < maps.size(); ++j) {
        if (!small[j]) continue;
        if (maps[j].d_weight) add_outer_products(*small[j], x + at, maps[j].dy + at, d_coefficients);
        d_coefficients += small[j]->coefficients.size();
        if (!dx) continue;
        map_row(*small[j], maps[j].dy + at, before, dx + at);
        before = dx + at;
      }
    }
  });
  const float* d_coefficients = sum.data();
  for (std::size_t j = 0; j < maps.size(); ++j) {
    if (small[j]) {
      if (maps[j].d_weight) to_blocks(*small[j], d_coefficients, maps[j].d_weight);
      d_coefficients += small[j]->coefficients.size();
    } else if (maps[j].d_weight) {
      large_weight_gradient(rows, width, x, maps[j], threads);
    }
    if (maps[j].d_bias) bias_gradient(rows, maps[j], threads);
  }
  bool written = all > 0;
  for (std::size_t j = 0; j < maps.size(); ++j) {
    if (small[j] || !dx) continue;
    large_input_gradient(rows, width, maps[j], dx, written, threads);
    written = true;
  }
  if (dx && !written) std::fill_n(dx, rows * width, 0.0f);
}

// The sizes of map j: blocks that split rows of W numbers.
DiagonalMap blocks(const Sizes& sizes, std::size_t j, const float* weight) {
  const Index groups = sizes.at("G_j", j), in = sizes.at("IN_j", j);
  require(groups * in == sizes["W"], "weight has ", groups, " blocks of ", in, " inputs, x has ", sizes["W"]);
  return {groups, sizes.at("OUT_j", j), in, weight, nullptr, nullptr, nullptr, nullptr, nullptr};
}

}  // namespace

void bind_block_diagonal(nb::module_& m) {
  m.def("is_small_block", &is_small_block, "out"_a, "inner"_a,
        "Whether block_diagonal has a kernel for blocks (out, inner); the others are matrix products.");
  const std::string maps = "x: N... W, weights: G_j OUT_j IN_j, ";
  def(m, "block_diagonal", maps + "biases: G_j*OUT_j, outs: N... G_j*OUT_j",
      "Slice g of out_j is slice g of x times W_j[g]^T, plus b_j.",
      [](Sizes& sizes, Floats x, std::vector<Floats> weights, std::vector<MaybeFloats> biases,
         std::vector<Result> outs, int threads) {
        DiagonalMaps maps;
        for (std::size_t j = 0; j < weights.size(); ++j) {
          DiagonalMap& map = maps.emplace_back(blocks(sizes, j, weights[j]));
          map.bias = biases[j], map.y = outs[j];
        }
        block_diagonal_forward(sizes["N"], sizes["W"], x, maps, threads);
      });
  def(m, "block_diagonal_grad",
      maps + "d_outs: N... G_j*OUT_j, dx: N... W, d_weights: G_j OUT_j IN_j, d_biases: G_j*OUT_j", "",
      [](Sizes& sizes, Floats x, std::vector<Floats> weights, std::vector<Floats> d_outs, MaybeResult dx,
         std::vector<MaybeResult> d_weights, std::vector<MaybeResult> d_biases, int threads) {
        DiagonalMaps maps;
        for (std::size_t j = 0; j < weights.size(); ++j) {
          DiagonalMap& map = maps.emplace_back(blocks(sizes, j, weights[j]));
          map.dy = d_outs[j], map.d_weight = d_weights[j], map.d_bias = d_biases[j];
        }
        block_diagonal_backward(sizes["N"], sizes["W"], x, maps, dx, threads);
      });
}

}  // namespace mlxhog
