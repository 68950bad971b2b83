// The thread pool of the model operators: each call names its thread count, nothing is global but the threads.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "simd.h"

namespace mlxhog {

// Runs task(0) ... task(count - 1) on up to `threads` threads, the caller's included, and returns when
// all are done. Threads are created on first need and sleep between calls. Concurrent calls take turns.
// Tasks must not call parallel_for. Where one throws, those not yet begun are left out, and the first exception is
// thrown from here. After a fork the child has threads of its own.
void parallel_for(Index count, int threads, const std::function<void(Index)>& task);

// Rows in tasks of a fixed size: sums over rows are taken per task, then in task order, so that the bits do not depend
// on the number of threads.
constexpr Index kRowsPerTask = 128;

// Calls work(first, count) over [0, n) in pieces of the same size.
template <class Work>
void in_pieces(Index n, Index piece, int threads, const Work& work) {
  parallel_for((n + piece - 1) / piece, threads,
               [&](Index task) { work(task * piece, std::min(piece, n - task * piece)); });
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
