// Is the process that a worker table entry names still able to run?
#pragma once

#include <cstdint>

namespace mlxhog {

// The clock of worker heartbeats, equal to Python's time.monotonic_ns().
std::uint64_t monotonic_ns();

// When a process started: clock ticks since boot on Linux (/proc/PID/stat field 22), microseconds since
// 1970 on macOS (libproc); 0 if there is no such process or its start is unknown.
std::uint64_t process_start_time(std::int64_t pid);

// True only when no thread of that process can write again: it does not exist, is a zombie, or the
// pid belongs to a process with another start time. `start_time` 0 means unknown and is not compared.
bool process_is_gone(std::int64_t pid, std::uint64_t start_time);

}  // namespace mlxhog
