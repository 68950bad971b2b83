#include "linear.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "gemm.h"
#include "rows.h"

namespace mlxhog {
namespace {

constexpr Index kTile = 14;    // rows of gemm's highest tile: pieces of whole tiles waste nothing
constexpr Index kPacked = 1 << 20;  // floats of a weight that are packed at once
// Widths up to which rows are read in place: the rows of a block of a product stay in a cache of 1 MiB.
constexpr Index kShortWeight = 512, kShortInput = 384;
constexpr Index kNarrow = 16;  // maps narrower than a vector are computed stacked, as one

// Several narrow maps as one whose outputs lie side by side.
struct Stack {
  std::vector<LinearMap> parts;
  Index out = 0;
  Buffer weight;

  // Moves the narrow maps out of `maps`, if there are two or more.
  Stack(std::vector<LinearMap>& maps, Index in) {
    const auto wide = [](const LinearMap& map) {
      return map.out >= kNarrow || map.bfloat16 || !map.weight.floats;
    };
    const auto wide_end = std::stable_partition(maps.begin(), maps.end(), wide);
    if (maps.end() - wide_end < 2) return;
    parts.assign(wide_end, maps.end());
    maps.erase(wide_end, maps.end());
    for (const LinearMap& part : parts) out += part.out;
    weight = uninitialized(out * in);
    for_each([&](const LinearMap& part, Index first) {
      std::copy_n(part.weight.floats, part.out * in, &weight[first * in]);
    });
  }

  // Calls use(part, its first output).
  template <class Use>
  void for_each(const Use& use) const {
    Index first = 0;
    for (const LinearMap& part : parts) {
      use(part, first);
      first += part.out;
    }
  }
};

// Calls work(first, count) over pieces of [0, rows): one piece with one thread, else four per thread.
template <class Work>
void in_row_pieces(Index rows, int threads, const Work& work) {
  const Index pieces = threads <= 1 ? 1 : Index{4} * threads;
  in_pieces(rows, std::max<Index>(1, ((rows + pieces - 1) / pieces + kTile - 1) / kTile) * kTile, threads, work);
}

// Columns or rows of a weight, `other` wide, that are packed at once: whole panels.
Index packed_at_once(Index other) { return std::max<Index>(1, kPacked / std::max<Index>(1, other) / kPanel) * kPanel; }

// As `packed`, by threads, or as `pack_vnni`.
Right pack_all(Index K, Index N, const float* from, Index k_step, Index n_step, float* panels, int threads,
               bool vnni) {
  if (has_blas() && !vnni) return {.p = from, .k_step = k_step, .n_step = n_step};
  constexpr Index kPanels = 4;  // per task
  const Index count = (N + kPanel - 1) / kPanel;
  parallel_for((count + kPanels - 1) / kPanels, threads, [&](Index task) {
    (vnni ? pack_vnni : pack)(K, N, from, k_step, n_step, task * kPanels, std::min(count, (task + 1) * kPanels),
                                panels);
  });
  return {.p = panels, .vnni = vnni};
}

}  // namespace

void linears_forward(Index rows, Index in, const float* x, std::vector<LinearMap> maps, int threads) {
  const Stack stack(maps, in);
  const Buffer stacked_bias = uninitialized(stack.out), stacked_y = uninitialized(rows * stack.out);
  if (stack.out) {
    stack.for_each([&](const LinearMap& part, Index first) {
      if (part.given) std::copy_n(part.given, part.out, &stacked_bias[first]);
      else std::fill_n(&stacked_bias[first], part.out, 0.0f);
    });
    maps.push_back({stack.out, stack.weight.get(), stacked_bias.get(), stacked_y.get()});
  }
  const Index at_once = packed_at_once(in);
  Index widest = 0;
  for (const LinearMap& map : maps) widest = std::max(widest, std::min(at_once, map.out));
  const Buffer panels = uninitialized(packed_floats(std::max(in, kMinVnni), widest));
  Buffer converted;
  for (const LinearMap& map : maps)
    for (Index n0 = 0; n0 < map.out; n0 += at_once) {
      const Index cols = std::min(at_once, map.out - n0);
      const float* weight = map.weight.rows(n0, cols, in, converted, widest * in, threads);
      const Right w = pack_all(in, cols, weight, 1, in, panels.get(), threads, map.bfloat16);
      in_row_pieces(rows, threads, [&](Index first, Index count) {
        float* y = map.written + first * map.out + n0;
        if (map.given) copy_rows(count, cols, map.given + n0, 0, y, map.out);
        gemm_packed(count, cols, in, x + first * in, in, 1, w, y, map.out, map.given != nullptr, map.rounds);
      });
    }
  stack.for_each([&](const LinearMap& part, Index first) {
    copy_rows(rows, part.out, &stacked_y[first], stack.out, part.written, part.out);
  });
}

void linears_backward(Index rows, Index in, const float* x, std::vector<LinearMap> maps, float* dx,
                      int threads, bool adds) {
  for (const LinearMap& map : maps) {
    if (!map.d_bias) continue;
    std::fill_n(map.d_bias, map.out, 0.0f);
    add_rows(rows, map.out, map.given, map.out, map.d_bias);
  }
  const Stack stack(maps, in);
  const bool is_trained = std::ranges::any_of(stack.parts, [](const LinearMap& part) { return part.written; });
  const Buffer stacked_dy = uninitialized(rows * stack.out);
  const Buffer stacked_d_weight = uninitialized(is_trained ? stack.out * in : 0);
  if (stack.out) {
    stack.for_each([&](const LinearMap& part, Index first) {
      copy_rows(rows, part.out, part.given, part.out, &stacked_dy[first], stack.out);
    });
    maps.push_back({stack.out, stack.weight.get(), stacked_dy.get(),
                    is_trained ? stacked_d_weight.get() : nullptr, nullptr});
  }
  const Index at_once = packed_at_once(in);
  Index longest = std::max(kMinVnni, std::min(at_once, rows));
  for (const LinearMap& map : maps) longest = std::max(longest, std::min(at_once, map.out));
  Buffer scratch;
  // `depth` rows of a right factor (.., in), packed unless they are `short_enough` to be read in place.
  const auto right = [&](const float* rows_of, Index depth, Index short_enough, bool vnni) -> std::optional<Right> {
    const bool short_rows = in <= short_enough && reinterpret_cast<std::uintptr_t>(rows_of) % kLine == 0;
    if (short_rows && !has_blas() && !vnni) return std::nullopt;
    if (!scratch) scratch = uninitialized(packed_floats(longest, in));
    return pack_all(depth, in, rows_of, in, 1, scratch.get(), threads, vnni);
  };
  // C (+)= A times those rows; C has rows of `in`.
  const auto multiply = [&](Index M, Index depth, const float* A, Index am, Index ak, const std::optional<Right>& b,
                            const float* rows_of, float* C, bool accumulate) {
    in_row_pieces(M, threads, [&](Index first, Index count) {
      if (b) gemm_packed(count, in, depth, A + first * am, am, ak, *b, C + first * in, in, accumulate);
      else gemm(count, in, depth, A + first * am, am, ak, rows_of, in, C + first * in, in, accumulate);
    });
  };
  if (dx) {
    bool written = false;
    Buffer converted;
    for (const LinearMap& map : maps)
      for (Index k0 = 0; k0 < map.out; k0 += at_once) {
        const Index depth = std::min(at_once, map.out - k0);
        const float* weight = map.weight.rows(k0, depth, in, converted, longest * in, threads);
        const std::optional<Right> w = right(weight, depth, kShortWeight, map.bfloat16);
        multiply(rows, depth, map.given + k0, map.out, 1, w, weight, dx, written);
        written = true;
      }
    if (!written) std::fill_n(dx, rows * in, 0.0f);  // nothing is computed from x
  }
  for (Index k0 = 0; k0 == 0 || k0 < rows; k0 += at_once) {  // without rows a gradient is 0
    const Index depth = std::min(at_once, rows - k0);
    for (const bool vnni : {false, true}) {
      std::optional<Right> b;
      const LinearMap* packed_for = nullptr;
      for (const LinearMap& map : maps) {
        if (map.bfloat16 != vnni || !map.written) continue;
        if (!std::exchange(packed_for, &map)) b = right(x + k0 * in, depth, kShortInput, vnni);
        multiply(map.out, depth, map.given + k0 * map.out, 1, map.out, b, x + k0 * in, map.written, adds || k0 > 0);
      }
    }
  }
  stack.for_each([&](const LinearMap& part, Index first) {
    if (part.written) std::copy_n(&stacked_d_weight[first * in], part.out * in, part.written);
  });
}

}  // namespace mlxhog
