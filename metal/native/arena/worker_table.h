// One worker's entry in the arena's worker table.
// The table of offsets and meanings is the docstring of mlxhog/arena/workers.py; both sides must agree.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxhog {

struct WorkerEntry {
  // Line 0: identity and life of the worker. Written by the supervisor, except heartbeat, phase and takeovers.
  // A slot is reused in this order: pid = 0, sweep its locks, generation + 1, dead = 0, start_time, pid.
  std::uint32_t state;
  std::uint32_t generation;  // the low 16 bits go into lock words
  std::uint32_t dead;        // 1 = reaped: its locks may be taken over
  std::uint32_t incarnation;
  std::int64_t pid;
  std::uint64_t start_time;
  std::uint64_t heartbeat_ns;
  std::uint32_t phase;
  std::uint32_t takeovers;
  std::uint8_t unused_identity[80];
  // Lines 1 and 2: its work. Written by the worker.
  std::int64_t ticket;
  std::uint64_t version_read;
  std::uint64_t steps;
  std::uint64_t tokens;
  double loss;
  std::uint64_t dropped;
  std::uint64_t nonfinite_in_row;
  std::uint64_t staleness_sum;
  std::uint64_t staleness_max;
  std::uint64_t probe_adds;
  std::uint64_t read_ns;
  std::uint64_t compute_ns;
  std::uint64_t apply_ns;
  std::uint64_t wait_ns;
  std::uint64_t rss_bytes;
  std::uint64_t opt_step;
  std::uint64_t restarts;
  std::uint64_t torn;
  double rate_sum;
  std::uint64_t forward_ns;
  std::uint64_t optimizer_ns;
  std::uint64_t other_ns;
  std::uint64_t changes;
  std::uint8_t unused_progress[200];
};

static_assert(sizeof(WorkerEntry) == 512);
static_assert(offsetof(WorkerEntry, state) == 0);
static_assert(offsetof(WorkerEntry, generation) == 4);
static_assert(offsetof(WorkerEntry, dead) == 8);
static_assert(offsetof(WorkerEntry, incarnation) == 12);
static_assert(offsetof(WorkerEntry, pid) == 16);
static_assert(offsetof(WorkerEntry, start_time) == 24);
static_assert(offsetof(WorkerEntry, heartbeat_ns) == 32);
static_assert(offsetof(WorkerEntry, phase) == 40);
static_assert(offsetof(WorkerEntry, takeovers) == 44);
static_assert(offsetof(WorkerEntry, ticket) == 128);
static_assert(offsetof(WorkerEntry, version_read) == 136);
static_assert(offsetof(WorkerEntry, steps) == 144);
static_assert(offsetof(WorkerEntry, tokens) == 152);
static_assert(offsetof(WorkerEntry, loss) == 160);
static_assert(offsetof(WorkerEntry, dropped) == 168);
static_assert(offsetof(WorkerEntry, nonfinite_in_row) == 176);
static_assert(offsetof(WorkerEntry, staleness_sum) == 184);
static_assert(offsetof(WorkerEntry, staleness_max) == 192);
static_assert(offsetof(WorkerEntry, probe_adds) == 200);
static_assert(offsetof(WorkerEntry, read_ns) == 208);
static_assert(offsetof(WorkerEntry, compute_ns) == 216);
static_assert(offsetof(WorkerEntry, apply_ns) == 224);
static_assert(offsetof(WorkerEntry, wait_ns) == 232);
static_assert(offsetof(WorkerEntry, rss_bytes) == 240);
static_assert(offsetof(WorkerEntry, opt_step) == 248);
static_assert(offsetof(WorkerEntry, restarts) == 256);
static_assert(offsetof(WorkerEntry, torn) == 264);
static_assert(offsetof(WorkerEntry, rate_sum) == 272);
static_assert(offsetof(WorkerEntry, forward_ns) == 280);
static_assert(offsetof(WorkerEntry, optimizer_ns) == 288);
static_assert(offsetof(WorkerEntry, other_ns) == 296);
static_assert(offsetof(WorkerEntry, changes) == 304);

}  // namespace mlxhog
