// The class of every thread that works in the operators' pool, under an Apple that passes none on.
#include <pthread/qos.h>

#include <atomic>
#include <thread>

#include "pool.h"

namespace {
constexpr qos_class_t kDefault = 0x15;
thread_local qos_class_t mine = kDefault;
}  // namespace

extern "C" {

qos_class_t qos_class_self() { return mine; }

int pthread_set_qos_class_self_np(qos_class_t qos_class, int) {
  mine = qos_class;
  return 0;
}

// Takes a class, then lets each of `threads` threads say which it has.
void classes(qos_class_t qos_class, int threads, unsigned* seen) {
  mine = qos_class;
  std::atomic<int> here{0};
  mlxhog::parallel_for(threads, threads, [&](mlxhog::Index i) {
    seen[i] = qos_class_self();
    here.fetch_add(1);
    while (here.load() < threads) std::this_thread::yield();  // so that nobody takes two tasks
  });
}

}  // extern "C"
