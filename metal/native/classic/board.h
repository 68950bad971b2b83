// The words that the workers of one classic run share beside the parameters: stop, turn and progress.
//
// 128-byte lines, so that no two words that are written often share one:
//
//   line 0      stop      u32   not 0: every loop and every wait ends
//   line 1      turn      u64   whose write it is: turn t belongs to worker t modulo the number of workers
//   line 2 + r  worker r  u64   examples done
//                         u64   gradients read in this round, or kGone
//
// The host clears all but the progress before every round, while no worker runs (`reset`).
#pragma once

#include <sched.h>

#include <cstddef>
#include <cstdint>

#include "../arena/control.h"

namespace mlxhog::classic {

// In place of the count of reads: this worker has no more examples. Others pass over its turns.
inline constexpr std::uint64_t kGone = ~std::uint64_t{0};

struct BoardHead {
  alignas(128) std::uint32_t stop;
  alignas(128) std::uint64_t turn;
};

struct alignas(128) BoardLine {
  std::uint64_t examples;
  std::uint64_t reads;
};

class Board {
 public:
  // The lines stay owned by the caller (the arena's mapping).
  Board(BoardHead* head, std::uint32_t workers)
      : head_(head), lines_(reinterpret_cast<BoardLine*>(head + 1)), workers_(workers) {}

  static std::size_t bytes(std::size_t workers) { return sizeof(BoardHead) + workers * sizeof(BoardLine); }

  std::uint32_t workers() const { return workers_; }

  // Relaxed: the word itself is the whole message, and seeing it a little later is fine.
  bool stopped() const { return __atomic_load_n(&head_->stop, __ATOMIC_RELAXED) != 0; }
  void stop() { store(&head_->stop, 1u); }

  void reset() {
    store(&head_->stop, 0u);
    store(&head_->turn, std::uint64_t{0});
    for (std::uint32_t r = 0; r < workers_; ++r) store(&lines_[r].reads, std::uint64_t{0});
  }

  // Relaxed: a number for people to look at.
  std::uint64_t examples(std::uint32_t r) const { return __atomic_load_n(&lines_[r].examples, __ATOMIC_RELAXED); }
  void count(std::uint32_t r, std::size_t more) {
    __atomic_store_n(&lines_[r].examples, examples(r) + more, __ATOMIC_RELAXED);  // only r writes it
  }

  // Worker r has gathered its gradient number `reads`. Release: a waiter that sees it may write, and no
  // read of ours can then see that write.
  void announce(std::uint32_t r, std::uint64_t reads) { store(&lines_[r].reads, reads); }

  // Worker r takes no more turns: it is done.
  void retire(std::uint32_t r) { store(&lines_[r].reads, kGone); }

  std::uint64_t reads(std::uint32_t r) const { return load(&lines_[r].reads); }

  // Wait until every worker that is not gone has read at least `reads` gradients; false if stopped.
  bool await_reads(std::uint64_t reads_wanted) const {
    return await([&] {
      for (std::uint32_t r = 0; r < workers_; ++r)
        if (reads(r) < reads_wanted) return false;
      return true;
    });
  }

  // Wait until turn `t` has come (or is over), passing over turns of workers that are gone; false if stopped.
  // Acquire: the writes of all turns before it are visible.
  bool await_turn(std::uint64_t t) {
    return await([&] {
      const std::uint64_t now = load(&head_->turn);
      if (now >= t) return true;
      // Only the word that we saw is moved on: two waiters cannot skip two turns.
      if (reads(static_cast<std::uint32_t>(now % workers_)) == kGone) cas(&head_->turn, now, now + 1);
      return false;
    });
  }

  // End the own turn. Release: the next worker sees its writes.
  void pass(std::uint64_t t) { cas(&head_->turn, t, t + 1); }

 private:
  // Spin a little, then let others have the core; a stop ends every wait.
  template <class Ready>
  bool await(Ready ready) const {
    constexpr int kSpins = 256;
    for (int spin = 0;; ++spin) {
      if (ready()) return true;
      if (stopped()) return false;
      if (spin < kSpins) pause_cpu();
      else sched_yield();
    }
  }

  BoardHead* head_;
  BoardLine* lines_;
  std::uint32_t workers_;
};

}  // namespace mlxhog::classic
