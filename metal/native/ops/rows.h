// Loops over rows of numbers that several operators have, and over the heads of sequences.
#pragma once

#include <algorithm>
#include <vector>

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

// Rows in tasks of a fixed size: sums over rows are taken per task, then in task order, so that the bits do not depend
// on the number of threads.
constexpr Index kRowsPerTask = 128;

// Calls work(task, part of `width` zeros) for every task and returns the sum of the parts.
template <class Work>
std::vector<float> summed_over_tasks(Index tasks, Index width, int threads, const Work& work) {
  std::vector<float> parts(tasks * width);
  parallel_for(tasks, threads, [&](Index task) { work(task, parts.data() + task * width); });
  std::vector<float> sum(width);
  for (Index task = 0; task < tasks; ++task) add_rows(1, width, parts.data() + task * width, width, sum.data());
  return sum;
}

// Calls work(first row, row count, part of `width` zeros) and returns the sum of the parts.
template <class Work>
std::vector<float> summed_over_rows(Index rows, Index width, int threads, const Work& work) {
  return summed_over_tasks((rows + kRowsPerTask - 1) / kRowsPerTask, width, threads, [&](Index task, float* part) {
    const Index first = task * kRowsPerTask;
    work(first, std::min(kRowsPerTask, rows - first), part);
  });
}

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
