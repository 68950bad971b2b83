// Adds at scattered elements of one parameter, under the lock that its other writers take. The elements are ascending, so
// those behind one lock are neighbors, and it is taken once for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "walk.h"

namespace mlxhog {

// Elements of a parameter at `offset` of the segment: element index[k] takes values[k].
struct Scattered {
  float* flat;
  std::size_t offset;
  const std::int32_t* index;  // ascending, each once
  const float* values;
  std::size_t count;

  void add(std::size_t from, std::size_t to) const {
    mlxhog_add_at(flat + offset, index + from, values + from, to - from);
  }
  void add_cas(std::size_t from, std::size_t to) const {
    cas_add_at(flat + offset, index + from, values + from, to - from);
  }
};

// `word_of(element)` names the lock that guards an element; it never falls as the element grows.
template <class WordOf>
void add_at_locked(Locks& locks, const Scattered& at, std::uint64_t seed, WordOf word_of) {
  std::vector<std::size_t> first;  // of each run behind one lock
  std::size_t last = static_cast<std::size_t>(-1);
  for (std::size_t k = 0; k < at.count; ++k) {
    const std::size_t word = word_of(static_cast<std::size_t>(at.index[k]));
    if (word != last) first.push_back(k);
    last = word;
  }
  const std::size_t runs = first.size();
  first.push_back(at.count);
  each_locked(
      locks, runs, scatter(seed) % runs,
      [&](std::size_t r) { return word_of(static_cast<std::size_t>(at.index[first[r]])); },
      [&](std::size_t r) { at.add(first[r], first[r + 1]); });
}

// `width` and `word0` as in walk_rows: kStripes is a dense parameter. `locks` may be null where `mode` takes none.
inline void walk_at(Locks* locks, Mode mode, const Scattered& at, std::size_t width, std::ptrdiff_t word0,
                    std::uint64_t seed) {
  if (at.count == 0) return;
  const std::size_t start = scatter(seed) % at.count;
  switch (mode) {
    case Mode::lossless:
      if (word0 == kStripes) add_at_locked(*locks, at, seed, [&](std::size_t i) { return (at.offset + i) / kStripe; });
      else add_at_locked(*locks, at, seed, [&](std::size_t i) { return static_cast<std::size_t>(word0) + i / width; });
      break;
    case Mode::racy:
      at.add(start, at.count);
      at.add(0, start);
      break;
    case Mode::cas:
      at.add_cas(start, at.count);
      at.add_cas(0, start);
      break;
    case Mode::in_turn: break;  // refused by the binding: these adds depend on reads without a lock
  }
}

}  // namespace mlxhog
