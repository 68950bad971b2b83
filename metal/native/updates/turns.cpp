#include "turns.h"

#include <sched.h>
#include <time.h>

#include <stdexcept>
#include <string>

#include "../arena/control.h"
#include "walk.h"

namespace mlxhog {
namespace {

constexpr int kSpins = 256;
constexpr int kYields = 200;  // then sleep between two polls: others need the core
constexpr long kNapNs = 50000;

std::string text(std::size_t n) { return std::to_string(n); }

}  // namespace

void Turns::record() {
  repeats_ = false;
  done_ = 0;
  publish(0, 0);
}

void Turns::repeat(std::vector<std::uint32_t> turns, bool torn) {
  turns_ = std::move(turns);
  repeats_ = true;
  torn_ = torn;
  unsettled_ = false;
  done_ = 0;
}

void Turns::settle() {
  if (!unsettled_) throw std::runtime_error("no access waits to be settled");
  unsettled_ = false;
  pass(torn_word_);
}

void Turns::note(Locks& locks, std::size_t word) {
  if (done_ == room_) {
    throw std::runtime_error("a step has more than " + text(room_) +
                             " accesses to shared parameters, for which its record has no room");
  }
  locks.lock(word, false);
  turn_ = next_[word];
  noted_[done_] = turn_;
  publish(word, ++done_);
}

bool Turns::wait(Locks& locks, std::size_t word) {
  if (done_ == turns_.size()) return false;
  turn_ = turns_[done_];
  __atomic_store_n(waits_, static_cast<std::uint32_t>(word + 1), __ATOMIC_RELAXED);
  for (long polls = 0;; ++polls) {
    // Acquire: pairs with the release of the worker that had the turn before.
    const std::uint32_t now = __atomic_load_n(&next_[word], __ATOMIC_ACQUIRE);
    if (now == turn_) break;
    if (static_cast<std::int32_t>(now - turn_) > 0) {
      throw std::runtime_error("turn " + text(turn_) + " of lock word " + text(word) + " is over: it is at " +
                               text(now) + "; the log contradicts itself");
    }
    if (polls < kSpins) {
      pause_cpu();
    } else if (polls < kSpins + kYields) {
      sched_yield();
    } else {
      const timespec nap{0, kNapNs};
      nanosleep(&nap, nullptr);
      locks.alive();
      if (stopped_.load(std::memory_order_relaxed)) throw std::runtime_error("the wait for a turn was stopped");
    }
  }
  __atomic_store_n(waits_, 0u, __ATOMIC_RELAXED);
  publish(word, ++done_);
  if (torn_ && done_ == turns_.size()) {
    torn_word_ = word;
    unsettled_ = true;
    return false;
  }
  return true;
}

}  // namespace mlxhog
