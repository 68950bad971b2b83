// The macOS branch of metal/native/updates/process_life.cpp, and the locks that rely on it, callable from Python.
#include "locks.h"
#include "process_life.h"

extern "C" {

std::uint64_t start_time(std::int64_t pid) { return mlxhog::process_start_time(pid); }

bool gone(std::int64_t pid, std::uint64_t start_time) { return mlxhog::process_is_gone(pid, start_time); }

std::uint64_t now_ns() { return mlxhog::monotonic_ns(); }

// Takes lock 0 as worker `slot`; returns how many locks of the dead were taken over.
std::uint64_t take(std::uint32_t* words, mlxhog::WorkerEntry* workers, std::size_t n_workers, std::uint32_t slot) {
  mlxhog::Locks locks(words, 1, workers, n_workers, slot, 0);
  locks.lock(0);
  return locks.takeovers();
}

}  // extern "C"
