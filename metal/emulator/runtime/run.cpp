// A launch: OS threads take threadgroups from a counter until none is left.

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <numeric>
#include <system_error>
#include <thread>
#include <vector>

#include "random.h"
#include "shim/launch.h"
#include "threadgroup.h"

namespace metal_emulator {

int fuzzed_launches = 0;

namespace {

#if defined(__linux__)
__attribute__((tls_model("initial-exec")))  // without a call, as each access to memory asks
#endif
thread_local Threadgroup* here = nullptr;

// Shared by the OS threads of one launch.
struct Workers {
  Body body;
  void* const* buffers;
  const Launch& launch;
  Thread common{};                   // what all threads have in common
  std::vector<std::uint32_t> order;  // of threadgroups; empty: ascending
  std::uint32_t n_threadgroups = 1;
  std::atomic<unsigned> n_threads{1};
  std::atomic<unsigned> present{0};
  std::atomic<std::uint32_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex message_lock;

  // All start together: else the first takes every threadgroup before the second exists, and nothing races.
  void work() {
    present.fetch_add(1);
    while (present.load() < n_threads) sched_yield();
    try {
      Threadgroup threadgroup(body, buffers, launch, common, n_threads == 1);
      here = &threadgroup;
      while (!failed.load(std::memory_order_relaxed)) {
        const std::uint32_t claimed = next.fetch_add(1, std::memory_order_relaxed);
        if (claimed >= n_threadgroups) break;
        threadgroup.run(position_in(common.threadgroups_per_grid, order.empty() ? claimed : order[claimed]));
      }
    } catch (const std::exception& error) {
      std::lock_guard guard(message_lock);
      if (!failed.exchange(true)) std::snprintf(launch.message, launch.message_bytes, "%s", error.what());
    }
    here = nullptr;
  }
};

}  // namespace

int run(Body body, void* const* buffers, const Launch& launch) {
  Workers workers{.body = body, .buffers = buffers, .launch = launch, .order = {}, .message_lock = {}};
  for (uint axis = 0; axis < 3; ++axis) {
    const uint grid = launch.grid[axis], full = launch.threads_per_threadgroup[axis];
    workers.common.threads_per_grid[axis] = grid;
    workers.common.dispatch_threads_per_threadgroup[axis] = full;
    workers.n_threadgroups *= workers.common.threadgroups_per_grid[axis] = (grid + full - 1) / full;
  }
  workers.n_threads = std::max(1u, std::min(launch.os_threads, workers.n_threadgroups));
  if (launch.fuzz_period != 0) {
    workers.order.resize(workers.n_threadgroups);
    std::iota(workers.order.begin(), workers.order.end(), 0u);
    Random(launch.seed).shuffle(workers.order.data(), workers.n_threadgroups);
  }
  const int is_fuzzed = launch.fuzz_period != 0;
  __atomic_fetch_add(&fuzzed_launches, is_fuzzed, __ATOMIC_RELAXED);
  std::vector<std::thread> others;
  try {
    for (unsigned i = 1; i < workers.n_threads; ++i) others.emplace_back([&] { workers.work(); });
  } catch (const std::system_error&) {  // the system has no more threads: these do the work
    workers.n_threads = static_cast<unsigned>(others.size()) + 1;
  }
  workers.work();
  for (std::thread& thread : others) thread.join();
  __atomic_fetch_sub(&fuzzed_launches, is_fuzzed, __ATOMIC_RELAXED);
  return workers.failed ? 1 : 0;
}

void wait_for_threadgroup(SourceLocation location, uint flags) { here->arrive_at_threadgroup(location, flags); }
void wait_for_simdgroup(SourceLocation location, uint flags) { here->arrive_at_simdgroup(location, flags); }
Values publish(const void* value, uint bytes, SourceLocation location) { return here->publish(value, bytes, location); }
void poison_once(void* variable, std::size_t bytes, ulong& filled_for) {
  here->poison_once(variable, bytes, filled_for);
}
void switch_at_random() { here->switch_at_random(); }
void note_access(const void* at, std::size_t bytes, bool writes) {
  if (here != nullptr) here->note_access(at, bytes, writes);
}

}  // namespace metal_emulator
