#include "block_diagonal.h"

#include <algorithm>
#include <optional>

#include "gemm.h"
#include "pool.h"
#include "small_blocks.h"

namespace mlxhog {
namespace {

// Coefficients of the maps of small blocks; the others have none.
template <class Map>
std::vector<std::optional<SmallBlocks>> small_blocks_of(const std::vector<Map>& maps, bool transposed) {
  std::vector<std::optional<SmallBlocks>> found;
  for (const Map& map : maps)
    found.push_back(is_small_block(map.out, map.in)
                        ? std::optional<SmallBlocks>(std::in_place, map.in, map.groups * map.in, map.weight, transposed)
                        : std::nullopt);
  return found;
}

void copy_rows(Index rows, Index width, const float* row, float* to) {
  for (Index r = 0; r < rows; ++r) std::copy(row, row + width, to + r * width);
}

// W (groups, out, in) as (groups, in, out).
std::vector<float> transposed_blocks(const DiagonalForward& map) {
  const Index block = map.out * map.in;
  std::vector<float> blocks(map.groups * block);
  for (Index g = 0; g < map.groups; ++g)
    transpose(map.weight + g * block, map.in, map.out, map.in, &blocks[g * block]);
  return blocks;
}

void large_forward(Index rows, Index width, const float* x, const DiagonalForward& map, int threads) {
  const Index width_out = map.groups * map.out, block = map.out * map.in;
  const std::vector<float> blocks = transposed_blocks(map);
  in_row_tasks(rows, threads, [&](Index first, Index count) {
    const float* x_rows = x + first * width;
    float* y_rows = map.y + first * width_out;
    if (map.bias) copy_rows(count, width_out, map.bias, y_rows);
    for (Index g = 0; g < map.groups; ++g)
      gemm(count, map.out, map.in, x_rows + g * map.in, width, 1, &blocks[g * block], map.out, y_rows + g * map.out,
           width_out, map.bias != nullptr);
  });
}

void large_weight_gradient(Index rows, Index width, const float* x, const DiagonalBackward& map, int threads) {
  const Index width_out = map.groups * map.out, block = map.out * map.in;
  parallel_for(map.groups, threads, [&](Index g) {
    gemm(map.out, map.in, rows, map.dy + g * map.out, 1, width_out, x + g * map.in, width, map.d_weight + g * block,
         map.in, false);
  });
}

void large_input_gradient(Index rows, Index width, const DiagonalBackward& map, float* dx, bool accumulate,
                          int threads) {
  const Index width_out = map.groups * map.out, block = map.out * map.in;
  in_row_tasks(rows, threads, [&](Index first, Index count) {
    for (Index g = 0; g < map.groups; ++g)
      gemm(count, map.in, map.out, map.dy + first * width_out + g * map.out, width_out, 1, map.weight + g * block,
           map.in, dx + first * width + g * map.in, width, accumulate);
  });
}

void bias_gradient(Index rows, const DiagonalBackward& map, int threads) {
  const Index width = map.groups * map.out;
  const auto sum = summed_over_rows(rows, width, threads, [&](Index first, Index count, float* part) {
    for (Index r = first; r < first + count; ++r) add_to(width, map.dy + r * width, part);
  });
  std::copy(sum.begin(), sum.end(), map.d_bias);
}

}  // namespace

void block_diagonal_forward(Index rows, Index width, const float* x, const std::vector<DiagonalForward>& maps,
                            int threads) {
  const auto small = small_blocks_of(maps, false);
  in_row_tasks(rows, threads, [&](Index first, Index count) {
    for (Index at = first * width; at < (first + count) * width; at += width)
      for (std::size_t j = 0; j < maps.size(); ++j)
        if (small[j]) map_row(*small[j], x + at, maps[j].bias, maps[j].y + at);
  });
  for (std::size_t j = 0; j < maps.size(); ++j)
    if (!small[j]) large_forward(rows, width, x, maps[j], threads);
}

void block_diagonal_backward(Index rows, Index width, const float* x, const std::vector<DiagonalBackward>& maps,
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
        add_outer_products(*small[j], x + at, maps[j].dy + at, d_coefficients);
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
      to_blocks(*small[j], d_coefficients, maps[j].d_weight);
      d_coefficients += small[j]->coefficients.size();
    } else {
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

}  // namespace mlxhog
