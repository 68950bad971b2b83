#include "locks.h"

#include <sched.h>

#include "../arena/control.h"
#include "process_life.h"

namespace mlxhog {
namespace {

constexpr int kSpins = 256;                        // about the time one stripe is held
constexpr std::uint64_t kProbeAfterNs = 50000000;  // then ask the kernel whether the owner lives
constexpr std::uint64_t kBeatEveryNs = 10000000;

// Adds the time of its life to a worker's waits. Relaxed: threads of a worker may wait at once, and the sum is all.
class Wait {
 public:
  explicit Wait(WorkerEntry& worker) : worker_(worker), began_ns_(monotonic_ns()) {}
  Wait(const Wait&) = delete;
  Wait& operator=(const Wait&) = delete;
  ~Wait() {
    const std::uint64_t waited_ns = monotonic_ns() - began_ns_;
    if (waited_ns != 0) __atomic_fetch_add(&worker_.wait_ns, waited_ns, __ATOMIC_RELAXED);
  }

 private:
  WorkerEntry& worker_;
  std::uint64_t began_ns_;
};

}  // namespace

bool Locks::owner_is_dead(std::uint32_t word, bool probe) const {
  const std::uint32_t slot = word & 0xffffu;
  // A word without a valid slot has no owner that could release it.
  if (slot == 0 || slot > n_workers_) return true;
  const WorkerEntry& owner = workers_[slot - 1];
  // Acquire: pairs with the supervisor's release store after it has reaped the worker.
  if (__atomic_load_n(&owner.dead, __ATOMIC_ACQUIRE) != 0) return true;
  const std::uint32_t generation = __atomic_load_n(&owner.generation, __ATOMIC_ACQUIRE);
  if ((generation & 0xffffu) != word >> 16) return true;
  if (!probe) return false;
  // Fallback for a supervisor that died itself. A stopped process is alive: it is waited for.
  // Acquire: the pid is stored last when a slot is filled, so the start time belongs to it.
  const std::int64_t pid = __atomic_load_n(&owner.pid, __ATOMIC_ACQUIRE);
  const std::uint64_t start_time = __atomic_load_n(&owner.start_time, __ATOMIC_RELAXED);
  // Only the supervisor sets `dead`: a mark from here could hit a worker that just got the slot. No process needs
  // the mark: the caller's CAS takes exactly the word that it saw, and others find theirs themselves.
  return process_is_gone(pid, start_time);
}

void Locks::beat(std::uint64_t now_ns) {
  // A waiting worker is alive; the supervisor must blame the worker that stopped while holding the lock.
  // Relaxed: the time itself is the whole message.
  __atomic_store_n(&workers_[slot_ - 1].heartbeat_ns, now_ns, __ATOMIC_RELAXED);
}

void Locks::wait(std::size_t i, bool takes_over) {
  for (int spin = 0; spin < kSpins; ++spin) {
    pause_cpu();
    // Relaxed: only a hint; the exchange orders.
    if (__atomic_load_n(&words_[i], __ATOMIC_RELAXED) == 0 && try_lock(i)) return;
  }
  const Wait counted(workers_[slot_ - 1]);
  std::uint64_t probe_at = monotonic_ns() + kProbeAfterNs, beat_at = 0;
  for (;;) {
    // Acquire: pairs with the release half of the owner's CAS, so that its generation is visible to us.
    const std::uint32_t word = __atomic_load_n(&words_[i], __ATOMIC_ACQUIRE);
    if (word == 0) {
      if (try_lock(i)) return;
      continue;
    }
    const std::uint64_t now = monotonic_ns();
    const bool probe = now >= probe_at;
    if (probe) probe_at = now + kProbeAfterNs;
    if (takes_over && owner_is_dead(word, probe)) {
      if (exchange(i, word)) {
        // Elements of the stripe are old or new, each whole: nothing to roll back, only to count.
        takeovers_.fetch_add(1, std::memory_order_relaxed);
        __atomic_fetch_add(&workers_[slot_ - 1].takeovers, 1u, __ATOMIC_RELAXED);
        return;
      }
      continue;
    }
    if (now >= beat_at) {
      beat(now);
      beat_at = now + kBeatEveryNs;
    }
    sched_yield();  // with more runnable workers than cores, spinning would keep the owner off its core
  }
}

void Locks::alive() { beat(monotonic_ns()); }

std::size_t sweep_locks(std::uint32_t* words, std::size_t n_words, std::uint32_t slot, std::int64_t generation) {
  std::size_t freed = 0;
  for (std::size_t i = 0; i < n_words; ++i) {
    // Relaxed read, then CAS of that very word: a survivor that takes it over first keeps it.
    std::uint32_t word = __atomic_load_n(&words[i], __ATOMIC_RELAXED);
    if ((word & 0xffffu) != slot || slot == 0) continue;
    if (generation >= 0 && word >> 16 != static_cast<std::uint32_t>(generation & 0xffff)) continue;
    // Release: passes the dead owner's last writes, which the process that reaped it sees, on to the next.
    if (__atomic_compare_exchange_n(&words[i], &word, 0u, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) ++freed;
  }
  return freed;
}

}  // namespace mlxhog
