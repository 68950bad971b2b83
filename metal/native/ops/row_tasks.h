// Rows in tasks of a fixed size: sums over rows are taken per task, then in task order, so that the bits
// do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "pool.h"

namespace mlxhog {

constexpr Index kRowsPerTask = 128;

// Calls work(first row, row count).
template <class Work>
void in_row_tasks(Index rows, int threads, const Work& work) {
  parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, threads, [&](Index task) {
    const Index first = task * kRowsPerTask;
    work(first, std::min(kRowsPerTask, rows - first));
  });
}

// sum[j] += x[j]
void add_to(Index count, const float* x, float* sum);

// Calls work(task, part of `width` zeros) for every task and returns the sum of the parts.
template <class Work>
std::vector<float> summed_over_tasks(Index tasks, Index width, int threads, const Work& work) {
  std::vector<float> parts(tasks * width);
  parallel_for(tasks, threads, [&](Index task) { work(task, parts.data() + task * width); });
  std::vector<float> sum(width);
  for (Index task = 0; task < tasks; ++task) add_to(width, parts.data() + task * width, sum.data());
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

}  // namespace mlxhog
