// Crash-safe locks in shared memory: a lock held by a dead worker is taken over, never waited for.
//
// A lock word is 0 when free, else the owner's slot (low 16 bits) and generation (high 16 bits). The
// generation distinguishes a reused slot from its dead predecessor.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "../arena/worker_table.h"

namespace mlxhog {

class Turns;

static_assert(__atomic_always_lock_free(sizeof(std::uint32_t), nullptr),
              "lock words must be lock-free: only then are they valid across processes");

class Locks {
 public:
  // `words` and `workers` stay owned by the caller (the arena's mapping) and must outlive this object.
  Locks(std::uint32_t* words, std::size_t n_words, WorkerEntry* workers, std::size_t n_workers,
        std::uint32_t slot, std::uint32_t generation)
      : words_(words), n_words_(n_words), workers_(workers), n_workers_(n_workers), slot_(slot),
        me_(slot | generation << 16) {}

  std::size_t size() const { return n_words_; }
  std::uint32_t word() const { return me_; }
  std::uint64_t takeovers() const { return takeovers_.load(std::memory_order_relaxed); }

  // Take lock i if it is free.
  bool try_lock(std::size_t i) { return exchange(i, 0); }

  // Take lock i: wait for a living owner, take over from a dead one; unless `takes_over`, wait until the supervisor has
  // settled the dead one's access (turns.h). Waits count in the worker's `wait_ns`, but for the first spins.
  void lock(std::size_t i, bool takes_over = true) {
    if (!try_lock(i)) wait(i, takes_over);
  }

  // Heartbeat of this worker, during long waits.
  void alive();

  // Notes or repeats the order of accesses (walk.h, Mode::in_turn); null for other modes.
  Turns* turns = nullptr;

  // Only by the owner. Release: the next owner sees every element written under the lock.
  void unlock(std::size_t i) { __atomic_store_n(&words_[i], 0u, __ATOMIC_RELEASE); }

  // Relaxed: a worker reads back its own write.
  bool owns(std::size_t i) const { return __atomic_load_n(&words_[i], __ATOMIC_RELAXED) == me_; }

 private:
  void wait(std::size_t i, bool takes_over);
  bool owner_is_dead(std::uint32_t word, bool probe) const;

  // Acquire: see the writes of the last owner of the stripe. Release: a process that reads this word with acquire
  // also sees our table entry's generation, so it does not take us for a dead predecessor.
  bool exchange(std::size_t i, std::uint32_t expected) {
    return __atomic_compare_exchange_n(&words_[i], &expected, me_, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
  }

  void beat(std::uint64_t now_ns);

  std::uint32_t* words_;
  std::size_t n_words_;
  WorkerEntry* workers_;
  std::size_t n_workers_;
  std::uint32_t slot_;
  std::uint32_t me_;
  std::atomic<std::uint64_t> takeovers_{0};  // threads of one worker may share this object
};

// Free every word that names `slot`, of any generation (generation < 0) or of that one only. For the
// supervisor, after it has reaped the slot's worker and before it reuses the slot. Returns the number freed.
std::size_t sweep_locks(std::uint32_t* words, std::size_t n_words, std::uint32_t slot, std::int64_t generation);

}  // namespace mlxhog
