#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <pthread.h>
#if defined(__APPLE__)
#include <pthread/qos.h>
#endif

namespace mlxhog {
namespace {

// How urgent the maker's work is to macOS, which chooses cores by that. A new thread begins with the default.
struct Urgency {
#if defined(__APPLE__)
  qos_class_t of_maker = qos_class_self();
  void take() const { pthread_set_qos_class_self_np(of_maker, 0); }
#else
  void take() const {}
#endif
};

class Pool {
 public:
  void run(Index count, int threads, const std::function<void(Index)>& task) {
    const std::scoped_lock one_call_at_a_time(calls_);
    const int helpers = static_cast<int>(std::min<Index>(threads, count)) - 1;
    {
      const std::scoped_lock lock(mutex_);
      while (static_cast<int>(helpers_.size()) < helpers) {
        const int id = static_cast<int>(helpers_.size());
        // A new helper has seen every earlier call, and joins the one announced below.
        helpers_.emplace_back([this, id, seen = generation_, urgency = Urgency()] {
          urgency.take();
          serve(id, seen);
        });
      }
      task_ = &task;
      count_ = count;
      wanted_ = helpers;
      busy_ = helpers;
      failure_ = nullptr;
      next_.store(0, std::memory_order_relaxed);  // published by the mutex
      ++generation_;
    }
    wake_.notify_all();
    take_tasks(count, task);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  void serve(int id, std::uint64_t seen) {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (id >= wanted_) continue;
      const std::function<void(Index)>& task = *task_;
      const Index count = count_;
      lock.unlock();
      take_tasks(count, task);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  void take_tasks(Index count, const std::function<void(Index)>& task) {
    // Relaxed: only the uniqueness of each index matters; results are published by the mutex.
    try {
      for (Index i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
    } catch (...) {
      next_.store(count, std::memory_order_relaxed);
      const std::scoped_lock lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  std::mutex calls_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> helpers_;
  const std::function<void(Index)>* task_ = nullptr;
  std::exception_ptr failure_;
  std::atomic<Index> next_{0};
  Index count_ = 0;
  std::uint64_t generation_ = 0;
  int wanted_ = 0, busy_ = 0;
};

// This process's pool, never destroyed: a daemon thread may be inside `run` when the process ends. A forked child has
// none of its parent's threads, so it takes a new pool.
struct Owner {
  Pool* pool = new Pool;

  Owner() {
    pthread_atfork(nullptr, nullptr, [] { owner().pool = new Pool; });
  }

  static Owner& owner() {
    static Owner& only = *new Owner;
    return only;
  }
};

}  // namespace

void parallel_for(Index count, int threads, const std::function<void(Index)>& task) {
  if (threads <= 1 || count <= 1) {
    for (Index i = 0; i < count; ++i) task(i);
    return;
  }
  constexpr int kMaxThreads = 1024;  // of one process; an absurd number asks for no more
  Owner::owner().pool->run(count, std::min(threads, kMaxThreads), task);
}

MLXHOG_CLONES void add_to(Index count, const float* x, float* sum) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) sum[j] += x[j];
}

}  // namespace mlxhog
