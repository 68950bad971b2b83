// The part of a worker's entry in the arena's worker table that locks read and write.
// mlxhog/arena/workers.py has every field; both sides must agree.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxhog {

// Written by the supervisor, except heartbeat, takeovers and the time of waits. A slot is reused in this order: pid =
// 0, sweep its locks, generation + 1, dead = 0, start_time, pid.
struct WorkerEntry {
  std::uint32_t state;
  std::uint32_t generation;  // the low 16 bits go into lock words
  std::uint32_t dead;        // 1 = reaped: its locks may be taken over
  std::uint32_t incarnation;
  std::int64_t pid;
  std::uint64_t start_time;
  std::uint64_t heartbeat_ns;
  std::uint32_t phase;
  std::uint32_t takeovers;
  std::uint8_t others[184];
  std::uint64_t wait_ns;
  std::uint8_t more[272];
};

static_assert(sizeof(WorkerEntry) == 512);
static_assert(offsetof(WorkerEntry, heartbeat_ns) == 32 && offsetof(WorkerEntry, wait_ns) == 232);

}  // namespace mlxhog
