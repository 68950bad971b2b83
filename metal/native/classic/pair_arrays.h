// What the bindings of problems on pairs check: the examples, and the rows they name.
#pragma once

#include <string>

#include "pairs.h"
#include "scheme_object.h"

namespace mlxhog::classic {

using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using PairTable = nb::ndarray<const std::int32_t, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;

// Checked once, so that the loops may trust every row number.
inline Pairs checked_pairs(const PairTable& table, std::size_t firsts, std::size_t seconds) {
  const std::size_t n = table.shape(0);
  for (std::size_t e = 0; e < n; ++e) {
    const std::size_t limit[2] = {firsts, seconds};
    for (std::size_t end = 0; end < 2; ++end) {
      const std::int32_t row = table.data()[3 * e + end];
      if (row < 0 || static_cast<std::size_t>(row) >= limit[end]) {
        wrong("example " + std::to_string(e) + " names row " + std::to_string(row) + " of " +
              std::to_string(limit[end]));
      }
    }
  }
  return Pairs(table.data(), n);
}

// A first lock word so large that the last row's number would wrap belongs to no arena.
inline void check_word(const char* name, std::size_t word) {
  if (word > std::size_t{1} << 62) wrong(std::string(name) + " is " + std::to_string(word) + ": no arena has so many lock words");
}

inline void check_size(const char* name, std::size_t got, std::size_t wanted) {
  if (got != wanted) {
    wrong(std::string(name) + " has " + std::to_string(got) + " entries; wanted " + std::to_string(wanted));
  }
}

}  // namespace mlxhog::classic
