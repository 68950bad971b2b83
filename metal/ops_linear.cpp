#include "ops_linear.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "ops_gemm.h"
#include "ops_pool.h"

namespace mlxhog {
namespace {

constexpr std::size_t kLine = 64;  // bytes; vector loads that cross cache lines cost 10 % of gemm's speed

struct Free {
  void operator()(float* p) const { ::operator delete[](p, std::align_val_t(kLine)); }
};
using Buffer = std::unique_ptr<float[], Free>;

constexpr Index kTile = 14;    // rows of gemm's register tile: pieces of whole tiles waste nothing
constexpr Index kNarrow = 16;  // maps narrower than a vector are computed stacked, as one

Buffer uninitialised(Index count) { return Buffer(new (std::align_val_t(kLine)) float[count]); }

MLXHOG_CLONES void column_sums(Index rows, Index cols, const float* x, float* sums) {
  std::fill(sums, sums + cols, 0.0f);
  for (Index r = 0; r < rows; ++r, x += cols) {
#pragma omp simd
    for (Index j = 0; j < cols; ++j) sums[j] += x[j];
  }
}

// to[r, :] = from[r, :] for rows of `width` that lie `to_ld` and `from_ld` apart
void copy_columns(Index rows, Index width, const float* from, Index from_ld, float* to, Index to_ld) {
  for (Index r = 0; r < rows; ++r) std::copy(from + r * from_ld, from + r * from_ld + width, to + r * to_ld);
}

// Several narrow maps as one whose outputs lie side by side.
template <class Map>
struct Stack {
  std::vector<Map> parts;
  Index out = 0;
  Buffer weight;

  // Moves the narrow maps out of `maps`, if there are two or more.
  Stack(std::vector<Map>& maps, Index in) {
    const auto wide_end = std::stable_partition(maps.begin(), maps.end(), [](const Map& m) { return m.out >= kNarrow; });
    if (maps.end() - wide_end < 2) return;
    parts.assign(wide_end, maps.end());
    maps.erase(wide_end, maps.end());
    for (const Map& part : parts) out += part.out;
    weight = uninitialised(out * in);
    for_each([&](const Map& part, Index first) { std::copy(part.weight, part.weight + part.out * in, &weight[first * in]); });
  }

  // Calls use(part, its first output).
  template <class Use>
  void for_each(const Use& use) const {
    Index first = 0;
    for (const Map& part : parts) {
      use(part, first);
      first += part.out;
    }
  }
};

// Calls work(first, count) over pieces of [0, rows): one piece with one thread, else four per thread.
template <class Work>
void in_row_pieces(Index rows, int threads, const Work& work) {
  const Index pieces = threads <= 1 ? 1 : 4 * threads;
  const Index piece = std::max<Index>(1, ((rows + pieces - 1) / pieces + kTile - 1) / kTile) * kTile;
  parallel_for((rows + piece - 1) / piece, threads,
               [&](Index task) { work(task * piece, std::min(piece, rows - task * piece)); });
}

}  // namespace

void linears_forward(Index rows, Index in, const float* x, std::vector<LinearForward> maps, int threads) {
  const Stack stack(maps, in);
  const Buffer stacked_bias = uninitialised(stack.out), stacked_y = uninitialised(rows * stack.out);
  if (stack.out) {
    stack.for_each([&](const LinearForward& part, Index first) {
      if (part.bias) std::copy(part.bias, part.bias + part.out, &stacked_bias[first]);
      else std::fill_n(&stacked_bias[first], part.out, 0.0f);
    });
    maps.push_back({stack.out, stack.weight.get(), stacked_bias.get(), stacked_y.get()});
  }
  std::vector<Buffer> transposed;  // (in, out): gemm reads B by rows
  for (const LinearForward& map : maps) {
    transposed.push_back(uninitialised(in * map.out));
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
  stack.for_each([&](const LinearForward& part, Index first) {
    copy_columns(rows, part.out, &stacked_y[first], stack.out, part.y, part.out);
  });
}

void linears_backward(Index rows, Index in, const float* x, std::vector<LinearBackward> maps, float* dx,
                      int threads) {
  for (const LinearBackward& map : maps)
    if (map.d_bias) column_sums(rows, map.out, map.dy, map.d_bias);
  const Stack stack(maps, in);
  const Buffer stacked_dy = uninitialised(rows * stack.out), stacked_d_weight = uninitialised(stack.out * in);
  if (stack.out) {
    stack.for_each([&](const LinearBackward& part, Index first) {
      copy_columns(rows, part.out, part.dy, part.out, &stacked_dy[first], stack.out);
    });
    maps.push_back({stack.out, stack.weight.get(), stacked_dy.get(), stacked_d_weight.get(), nullptr});
  }
  std::vector<Buffer> moved;  // MLX puts its arrays 24 bytes into a line
  for (LinearBackward& map : maps) {
    if (reinterpret_cast<std::uintptr_t>(map.weight) % kLine == 0) continue;
    moved.push_back(uninitialised(map.out * in));
    std::copy_n(map.weight, map.out * in, moved.back().get());
    map.weight = moved.back().get();
  }
  if (dx)
    in_row_pieces(rows, threads, [&](Index first, Index count) {
      for (std::size_t j = 0; j < maps.size(); ++j)
        gemm(count, in, maps[j].out, maps[j].dy + first * maps[j].out, maps[j].out, 1, maps[j].weight, in,
             dx + first * in, in, j > 0);
    });
  for (const LinearBackward& map : maps)
    in_row_pieces(map.out, threads, [&](Index first, Index count) {
      gemm(count, in, rows, map.dy + first, 1, map.out, x, in, map.d_weight + first * in, in, false);
    });
  stack.for_each([&](const LinearBackward& part, Index first) {
    std::copy_n(&stacked_d_weight[first * in], part.out * in, part.d_weight);
  });
}

}  // namespace mlxhog
