// Examples that are a pair of rows and a number: a rating by a user of an item, an edge between two vertices.
//
// (n, 3) int32: both rows and the bits of the float, so that one example at random is one cache miss (or two
// in neighboring lines, which the prefetcher fetches together).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "access.h"

namespace mlxhog::classic {

struct Pair {
  std::size_t first, second;
  float value;
};

class Pairs {
 public:
  // Stays owned by the caller.
  Pairs(const std::int32_t* table, std::size_t n) : table_(table), n_(n) {}

  std::size_t size() const { return n_; }

  Pair operator[](std::size_t e) const {
    const std::int32_t* at = table_ + 3 * e;
    return {static_cast<std::size_t>(at[0]), static_cast<std::size_t>(at[1]), std::bit_cast<float>(at[2])};
  }
  Pair operator[](std::int32_t e) const { return (*this)[static_cast<std::size_t>(e)]; }

  // Fetch the example that comes `kExampleAhead` after order[i], and the rows of a nearer one, whose numbers
  // have arrived by then: `rows(pair)`.
  template <class Rows>
  MLXHOG_PREFETCH void prefetch(const std::int32_t* order, std::size_t i, std::size_t count, Rows rows) const {
    constexpr std::size_t kExampleAhead = 64, kRowsAhead = 32;
    if (i + kExampleAhead < count) __builtin_prefetch(table_ + 3 * static_cast<std::size_t>(order[i + kExampleAhead]));
    if (i + kRowsAhead < count) rows((*this)[order[i + kRowsAhead]]);
  }

 private:
  const std::int32_t* table_;
  std::size_t n_;
};

}  // namespace mlxhog::classic
