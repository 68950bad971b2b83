// Selection of elements of a worker's pending step, and their removal from it.
//
// All memory here is private to one worker by contract, but no result is written past its end if another
// process writes it meanwhile: every element is read once, and counts are limits. Magnitudes are compared as the
// bits of |u|, which have the order of the numbers; NaN is larger than everything, so that it leaves as in a dense
// step. Zeros never leave.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxhog {

// `rows` runs of `width` floats of a parameter at `u`: row index[k], or row k where `index` is null.
struct Pending {
  float* u;
  std::size_t width, rows;
  const std::int32_t* index;  // ascending, each once

  std::size_t row(std::size_t k) const { return index == nullptr ? k : static_cast<std::size_t>(index[k]); }
};

// Elements whose magnitude is larger leave, and the first `ties` of those that have exactly this one.
struct Bound {
  std::uint32_t magnitude;
  std::size_t ties;
};

// The bound that lets the k largest leave, or all that are not zero if they are fewer. O(elements).
Bound largest(const Pending& pending, std::size_t k);

// The bound that lets every magnitude of at least `least` leave.
Bound reaching(float least);

// The number of elements that a bound lets leave.
std::size_t count(const Pending& pending, Bound bound);

// Move the elements of the bound, at most `room`, to index (element of the parameter, ascending) and values, and set
// them to 0 in `pending`; the rest stays if `keep`, else it becomes 0, too. Returns the number moved.
std::size_t take(const Pending& pending, Bound bound, bool keep, std::size_t room, std::int32_t* index,
                 float* values);

}  // namespace mlxhog
