#include "selection.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <vector>

namespace mlxhog {
namespace {

constexpr int kShift = 19;                              // 8 bits of exponent and 4 of mantissa are left
constexpr std::size_t kBins = std::size_t{1} << (31 - kShift);

inline std::uint32_t magnitude(float x) { return std::bit_cast<std::uint32_t>(x) & 0x7fffffffu; }

template <class Visit>
void each(const Pending& pending, Visit visit) {
  for (std::size_t k = 0; k < pending.rows; ++k) {
    const float* row = pending.u + pending.row(k) * pending.width;
    for (std::size_t j = 0; j < pending.width; ++j) visit(magnitude(row[j]));
  }
}

}  // namespace

Bound largest(const Pending& pending, std::size_t k) {
  if (k == 0) return {0xffffffffu, 0};
  std::vector<std::size_t> bins(kBins);
  each(pending, [&](std::uint32_t bits) { ++bins[bits >> kShift]; });
  // Down from the top: the bin in which the k-th largest lies, and how many are wanted of it.
  std::size_t bin = kBins, above = 0;
  while (bin > 0 && above + bins[bin - 1] < k) above += bins[--bin];
  if (bin == 0) return {0, 0};  // fewer than k elements
  --bin;
  std::vector<std::uint32_t> inside;
  inside.reserve(bins[bin]);
  each(pending, [&](std::uint32_t bits) {
    if (bits >> kShift == bin) inside.push_back(bits);
  });
  const std::size_t wanted = std::min(k - above, inside.size());  // fewer only if others write `pending`
  if (wanted == 0) return {0, 0};
  const auto nth = inside.begin() + static_cast<std::ptrdiff_t>(wanted - 1);
  std::nth_element(inside.begin(), nth, inside.end(), std::greater<>());
  if (*nth == 0) return {0, 0};
  const auto larger = std::count_if(inside.begin(), nth, [&](std::uint32_t bits) { return bits > *nth; });
  return {*nth, wanted - static_cast<std::size_t>(larger)};
}

Bound reaching(float least) {
  return {std::max(magnitude(least), 1u) - 1, 0};
}

std::size_t count(const Pending& pending, Bound bound) {
  std::size_t larger = 0, equal = 0;
  each(pending, [&](std::uint32_t bits) {
    larger += bits > bound.magnitude;
    equal += bits == bound.magnitude;
  });
  return larger + std::min(equal, bound.ties);
}

std::size_t take(const Pending& pending, Bound bound, bool keep, std::size_t room, std::int32_t* index,
                 float* values) {
  std::size_t taken = 0;
  for (std::size_t k = 0; k < pending.rows; ++k) {
    const std::size_t first = pending.row(k) * pending.width;
    for (std::size_t i = first; i < first + pending.width; ++i) {
      const float value = pending.u[i];
      const std::uint32_t bits = magnitude(value);
      if (bits < bound.magnitude || (bits == bound.magnitude && bound.ties == 0)) continue;
      if (taken == room) continue;
      if (bits == bound.magnitude) --bound.ties;
      index[taken] = static_cast<std::int32_t>(i);
      values[taken++] = value;
      pending.u[i] = 0.0f;
    }
    if (!keep) std::fill_n(pending.u + first, pending.width, 0.0f);
  }
  return taken;
}

}  // namespace mlxhog
