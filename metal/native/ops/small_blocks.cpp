#include "small_blocks.h"

#include <cstring>
#include <utility>

namespace mlxhog {
namespace {

constexpr Index kLanes = 16;
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));

MLXHOG_INLINE void load(const float* from, Index count, Vec& v) {
  if (count >= kLanes) {
    std::memcpy(&v, from, sizeof v);
  } else {
    v = Vec{};
    std::memcpy(&v, from, static_cast<std::size_t>(count) * sizeof(float));
  }
}

MLXHOG_INLINE void store(const Vec& v, Index count, float* to) {
  std::memcpy(to, &v, count >= kLanes ? sizeof v : static_cast<std::size_t>(count) * sizeof(float));
}

// Lane by lane the number `At` of the lane's block.
template <int Size, int At, int... Lane>
MLXHOG_INLINE void spread_lanes(const Vec& v, Vec& out, std::integer_sequence<int, Lane...>) {
  out = __builtin_shufflevector(v, v, (Lane / Size * Size + At)...);
}

template <int Size, int At>
MLXHOG_INLINE void spread(const Vec& v, Vec& out) {
  spread_lanes<Size, At>(v, out, std::make_integer_sequence<int, kLanes>());
}

template <int Size, int... At>
MLXHOG_INLINE void map_lanes(const SmallBlocks& s, const float* x, const float* base, float* y,
                             std::integer_sequence<int, At...>) {
  for (Index c = 0; c < s.width; c += kLanes) {
    const Index count = s.width - c;
    Vec v, sum{}, number, coefficient;
    load(x + c, count, v);
    if (base) load(base + c, count, sum);
    const float* at = s.coefficients.data() + c;
    ((spread<Size, At>(v, number), load(at + At * s.padded, kLanes, coefficient), sum += coefficient * number), ...);
    store(sum, count, y + c);
  }
}

template <int Size, int... At>
MLXHOG_INLINE void add_lanes(const SmallBlocks& s, const float* x, const float* dy, float* d_coefficients,
                             std::integer_sequence<int, At...>) {
  for (Index c = 0; c < s.width; c += kLanes) {
    Vec v, d, number, sum;
    load(x + c, s.width - c, v);
    load(dy + c, s.width - c, d);
    float* at = d_coefficients + c;
    ((spread<Size, At>(v, number), load(at + At * s.padded, kLanes, sum), sum += d * number,
      store(sum, kLanes, at + At * s.padded)),
     ...);
  }
}

}  // namespace

bool is_small_block(Index out, Index in) {
  return out == in && (in == 1 || in == 2 || in == 4 || in == 8 || in == 16);
}

SmallBlocks::SmallBlocks(Index size, Index width, const float* weight, bool transposed)
    : size(size), width(width), padded((width + kLanes - 1) / kLanes * kLanes), coefficients(size * padded) {
  for (Index c = 0; c < width; ++c)
    for (Index k = 0; k < size; ++k) {
      const float* block = weight + c / size * size * size;
      coefficients[k * padded + c] = transposed ? block[k * size + c % size] : block[c % size * size + k];
    }
}

void to_blocks(const SmallBlocks& s, const float* coefficients, float* weight) {
  for (Index c = 0; c < s.width; ++c)
    for (Index k = 0; k < s.size; ++k) weight[c * s.size + k] = coefficients[k * s.padded + c];
}

MLXHOG_CLONES void map_row(const SmallBlocks& s, const float* x, const float* base, float* y) {
  switch (s.size) {
    case 1: return map_lanes<1>(s, x, base, y, std::make_integer_sequence<int, 1>());
    case 2: return map_lanes<2>(s, x, base, y, std::make_integer_sequence<int, 2>());
    case 4: return map_lanes<4>(s, x, base, y, std::make_integer_sequence<int, 4>());
    case 8: return map_lanes<8>(s, x, base, y, std::make_integer_sequence<int, 8>());
    default: return map_lanes<16>(s, x, base, y, std::make_integer_sequence<int, 16>());
  }
}

MLXHOG_CLONES void add_outer_products(const SmallBlocks& s, const float* x, const float* dy,
                                      float* d_coefficients) {
  switch (s.size) {
    case 1: return add_lanes<1>(s, x, dy, d_coefficients, std::make_integer_sequence<int, 1>());
    case 2: return add_lanes<2>(s, x, dy, d_coefficients, std::make_integer_sequence<int, 2>());
    case 4: return add_lanes<4>(s, x, dy, d_coefficients, std::make_integer_sequence<int, 4>());
    case 8: return add_lanes<8>(s, x, dy, d_coefficients, std::make_integer_sequence<int, 8>());
    default: return add_lanes<16>(s, x, dy, d_coefficients, std::make_integer_sequence<int, 16>());
  }
}

}  // namespace mlxhog
