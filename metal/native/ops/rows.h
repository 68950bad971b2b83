// Loops over rows that several operators have, and over the heads of sequences.
#pragma once

#include <algorithm>

#include "memory.h"
#include "pool.h"

namespace mlxhog {

// to[r, :] = factor * from[r, :] for rows that lie `from_ld` and `to_ld` apart; the rest of a row of `to` up to
// `padded` becomes 0.
void copy_rows(Index rows, Index width, const float* from, Index from_ld, float* to, Index to_ld, Index padded = 0,
               float factor = 1.0f);

// sum[j] += x[r, j] of all rows, `ld` apart, in their order
void add_rows(Index rows, Index width, const float* x, Index ld, float* sum);

// x[j] *= factor
void scale(Index count, float factor, float* x);

// x[j] = e^x[j]
void exponentials(Index count, float* x);

float dot(Index count, const float* a, const float* b);

// Calls work(b, head, scratch) for every head of every sequence, with a `Scratch` of each task's own, made by make();
// one after another in memory where several threads would share a cache line: `width` is the narrowest head.
template <class Make, class Work>
void for_each_head(Index B, Index NH, Index width, int threads, const Make& make, const Work& work) {
  if (NH == 0) return;
  const Index line = static_cast<Index>(kLine / sizeof(float));
  const Index together = std::min(NH, std::max<Index>(1, line / std::max<Index>(1, width)));
  const Index groups = (NH + together - 1) / together;
  parallel_for(B * groups, threads, [&](Index task) {
    auto scratch = make();
    const Index first = task % groups * together;
    for (Index head = first; head < std::min(NH, first + together); ++head) work(task / groups, head, scratch);
  });
}

}  // namespace mlxhog
