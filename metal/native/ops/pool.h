// The thread pool of the model operators: each call names its thread count, nothing is global but the threads.
#pragma once

#include <algorithm>
#include <functional>

#include "simd.h"

namespace mlxhog {

// Runs task(0) ... task(count - 1) on up to `threads` threads, the caller's included, and returns when
// all are done. Threads are created on first need and sleep between calls. Concurrent calls take turns.
// Tasks must not call parallel_for. Where one throws, those not yet begun are left out, and the first exception is
// thrown from here. After a fork the child has threads of its own.
void parallel_for(Index count, int threads, const std::function<void(Index)>& task);

// Calls work(first, count) over [0, n) in pieces of the same size.
template <class Work>
void in_pieces(Index n, Index piece, int threads, const Work& work) {
  parallel_for((n + piece - 1) / piece, threads,
               [&](Index task) { work(task * piece, std::min(piece, n - task * piece)); });
}

}  // namespace mlxhog
