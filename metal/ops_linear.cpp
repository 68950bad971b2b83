#include "ops_linear.h"

#include <algorithm>
#include <memory>

#include "ops_gemm.h"
#include "ops_pool.h"

namespace mlxhog {
namespace {

constexpr Index kTile = 14;  // rows of gemm's register tile: pieces of whole tiles waste nothing

MLXHOG_CLONES void column_sums(Index rows, Index cols, const float* x, float* sums) {
  std::fill(sums, sums + cols, 0.0f);
  for (Index r = 0; r < rows; ++r, x += cols) {
#pragma omp simd
    for (Index j = 0; j < cols; ++j) sums[j] += x[j];
  }
}

// Calls work(first, count) over pieces of [0, rows): one piece with one thread, else four per thread.
template <class Work>
void in_row_pieces(Index rows, int threads, const Work& work) {
  const Index pieces = threads <= 1 ? 1 : 4 * threads;
  const Index piece = std::max<Index>(1, ((rows + pieces - 1) / pieces + kTile - 1) / kTile) * kTile;
  parallel_for((rows + piece - 1) / piece, threads,
               [&](Index task) { work(task * piece, std::min(piece, rows - task * piece)); });
}

}  // namespace

void linears_forward(Index rows, Index in, const float* x, const std::vector<LinearForward>& maps, int threads) {
  std::vector<std::unique_ptr<float[]>> transposed;  // (in, out): gemm reads B by rows
  for (const LinearForward& map : maps) {
    transposed.push_back(std::make_unique_for_overwrite<float[]>(in * map.out));
    transpose(map.weight, in, map.out, in, transposed.back().get());
  }
  in_row_pieces(rows, threads, [&](Index first, Index count) {
    for (std::size_t j = 0; j < maps.size(); ++j) {
      const auto& [out, weight, bias, y_all] = maps[j];
      float* y = y_all + first * out;
      if (bias)
        for (Index r = 0; r < count; ++r) std::copy(bias, bias + out, y + r * out);
      gemm(count, out, in, x + first * in, in, 1, transposed[j].get(), out, y, out, bias != nullptr);
    }
  });
}

void linears_backward(Index rows, Index in, const float* x, const std::vector<LinearBackward>& maps, float* dx,
                      int threads) {
  if (dx)
    in_row_pieces(rows, threads, [&](Index first, Index count) {
      for (std::size_t j = 0; j < maps.size(); ++j)
        gemm(count, in, maps[j].out, maps[j].dy + first * maps[j].out, maps[j].out, 1, maps[j].weight, in,
             dx + first * in, in, j > 0);
    });
  for (const LinearBackward& map : maps) {
    in_row_pieces(map.out, threads, [&](Index first, Index count) {
      gemm(count, in, rows, map.dy + first, 1, map.out, x, in, map.d_weight + first * in, in, false);
    });
    if (map.d_bias) column_sums(rows, map.out, map.dy, map.d_bias);
  }
}

}  // namespace mlxhog
