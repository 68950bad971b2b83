// Adds to 16-bit floats, which have no atomics of their own: two of them make a 32-bit word.
#pragma once

#include "atomics.h"
#include "unfused.h"

namespace mlxhog {

// The sum in float32, rounded to nearest even.
template <typename T>
inline ushort sum16(ushort a, ushort b) {
  return as_type<ushort>(T(float(as_type<T>(a)) + float(as_type<T>(b))));
}

// arena[offset + i] += g[i], a word with two numbers of type T at a time; the low half comes first in memory.
// The word only moves from bits that were seen to bits computed from them, so no add is lost. Bits also
// compare equal where numbers do not (NaN), so a try fails only because another writer, or chance, came
// first. After kMost such failures the two adds are left out, and counted.
template <typename T, uint kMost = kTries>
inline void packed16_add(const device uint* arena, const device uint* g, const device uint* failures,
                         uint n_words, uint offset, device uint* done, uint i) {
  if (i >= n_words) return;
  if (i == 0) done[0] = 1u;
  const device uint* word = arena + offset + i;
  const uint delta = g[i];
  uint seen = load_bits(word);
  for (uint k = 0; k < kMost; ++k) {
    const uint low = sum16<T>(ushort(seen & 0xffffu), ushort(delta & 0xffffu));
    const uint high = sum16<T>(ushort(seen >> 16), ushort(delta >> 16));
    if (swap_bits(word, seen, low | high << 16)) return;
  }
  count(failures, 1u);
}

}  // namespace mlxhog
