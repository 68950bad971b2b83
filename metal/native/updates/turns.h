// Turns: the order in which workers access the memory of a lock word, recorded and repeated.
//
// `next[i]` counts all accesses under lock word i, reads and writes alike, so each access has its own turn there. A
// worker that records notes the turns of its accesses in program order. One that repeats does its n-th access when `next`
// reaches the noted turn: every stripe sees the same accesses in the same order, at any speed of the processes. The
// recorded order exists, so no worker waits forever.
//
// A worker's book is shared memory, so its accesses are known after it was killed at any instruction:
//   bytes 0 .. 7     u64  word of its last access << 32 | accesses noted in this step
//   bytes 8 .. 11    u32  1 + the word that it waits for, when it repeats; 0 while it does not wait
//   bytes 12 .. 511       its caller's
//   bytes 512 ..     u32  the turn of each access of this step
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "locks.h"

namespace mlxhog {

class Turns {
 public:
  static constexpr std::size_t kHead = 512;  // bytes of a book in front of its turns

  // `next` and `book` stay owned by the caller and must outlive this object.
  Turns(std::uint32_t* next, std::uint8_t* book, std::size_t book_bytes)
      : next_(next), words_(reinterpret_cast<std::uint64_t*>(book)), waits_(reinterpret_cast<std::uint32_t*>(book + 8)),
        noted_(reinterpret_cast<std::uint32_t*>(book + kHead)), room_((book_bytes - kHead) / sizeof(std::uint32_t)) {}

  std::size_t done() const { return done_; }

  // Begin a step whose accesses are noted.
  void record();

  // Begin a step whose accesses have the turns of a recorded one. Later accesses are left out. With `torn` the last
  // waits for its turn and then leaves the rest to `settle`.
  void repeat(std::vector<std::uint32_t> turns, bool torn);

  // End the waits for turns in other threads with an error.
  void stop() { stopped_.store(true, std::memory_order_relaxed); }

  // End the access that `repeat` left to the caller.
  void settle();

  // Do `run`, which accesses the memory that lock word `word` guards.
  template <class Run>
  void access(Locks& locks, std::size_t word, Run run) {
    if (!repeats_) note(locks, word);
    else if (!wait(locks, word)) return;
    run();
    pass(word);
    if (!repeats_) locks.unlock(word);
  }

 private:
  void note(Locks& locks, std::size_t word);  // take the lock, and note the turn
  bool wait(Locks& locks, std::size_t word);  // until the noted turn; whether there is something to do
  void pass(std::size_t word) {
    // Release: the worker with the next turn sees the writes, also without a lock.
    __atomic_store_n(&next_[word], turn_ + 1, __ATOMIC_RELEASE);
  }
  void publish(std::size_t word, std::size_t done) {
    __atomic_store_n(words_, static_cast<std::uint64_t>(word) << 32 | done, __ATOMIC_RELEASE);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // no write of `run` comes before it in this program
  }

  std::uint32_t* next_;
  std::uint64_t* words_;
  std::uint32_t* waits_;
  std::uint32_t* noted_;
  std::size_t room_;
  std::vector<std::uint32_t> turns_;  // to be repeated
  std::size_t done_ = 0, torn_word_ = 0;
  std::uint32_t turn_ = 0;
  std::atomic<bool> stopped_{false};
  bool repeats_ = false, torn_ = false, unsettled_ = false;
};

}  // namespace mlxhog
