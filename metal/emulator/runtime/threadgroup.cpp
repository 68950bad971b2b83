#include "threadgroup.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "failure.h"

namespace metal_emulator {
namespace {

constexpr std::size_t max_threadgroup_bytes = 32 * 1024;
constexpr std::size_t set_bytes = simd_width * 16;
constexpr uint os_switch_period = 64;

std::atomic<ulong> last_serial{0};

bool same(const SourceLocation& a, const SourceLocation& b) {
  return a.line == b.line && std::strcmp(a.call, b.call) == 0 && std::strcmp(a.file, b.file) == 0;
}

uint threads_left(uint grid, uint threadgroup, uint position) {
  return std::min(threadgroup, grid - position * threadgroup);
}

}  // namespace

Threadgroup::Threadgroup(Body body, void* const* buffers, const Launch& launch, bool alone)
    : body_(body), buffers_(buffers), launch_(launch), alone_(alone), seed_(Random(launch.seed).next()) {
  common_.threads_per_grid = {launch.grid[0], launch.grid[1], launch.grid[2]};
  common_.dispatch_threads_per_threadgroup = {launch.threads_per_threadgroup[0], launch.threads_per_threadgroup[1], launch.threads_per_threadgroup[2]};
  for (int axis = 0; axis < 3; ++axis) {
    common_.threadgroups_per_grid[axis] =
        (launch.grid[axis] + launch.threads_per_threadgroup[axis] - 1) / launch.threads_per_threadgroup[axis];
  }
  if (launch.uses_barriers != 0 || launch.fuzz_period != 0) {
    std::size_t most = launch.threads_per_threadgroup[0] * launch.threads_per_threadgroup[1] * launch.threads_per_threadgroup[2];
    stacks_.emplace();
    threads_.resize(most);
    simd_barriers_.resize((most + simd_width - 1) / simd_width);
    shown_.resize(simd_barriers_.size() * 2 * set_bytes);
  }
}

void Threadgroup::run(metal::uint3 position) {
  describe(position);
  if (threads_.empty()) {
    run_lanes();
  } else {
    run_fibers();
  }
}

void Threadgroup::describe(metal::uint3 position) {
  common_.threadgroup_position_in_grid = position;
  const metal::uint3 grid = common_.threads_per_grid, full = common_.dispatch_threads_per_threadgroup;
  common_.threads_per_threadgroup = {threads_left(grid.x, full.x, position.x),
                                     threads_left(grid.y, full.y, position.y),
                                     threads_left(grid.z, full.z, position.z)};
  const metal::uint3 size = common_.threads_per_threadgroup;
  n_ = size.x * size.y * size.z;
  common_.simdgroups_per_threadgroup = (n_ + simd_width - 1) / simd_width;
  serial_ = last_serial.fetch_add(1, std::memory_order_relaxed) + 1;
  threadgroup_bytes_ = 0;
  accesses_.begin(serial_);
  // Schedule fuzzing depends on the threadgroup alone, not on the OS thread that happens to take it.
  const metal::uint3 threadgroups = common_.threadgroups_per_grid;
  random_ = Random(seed_ + (position.z * threadgroups.y + position.y) * ulong(threadgroups.x) + position.x);
}

Thread Threadgroup::thread(uint index) const {
  Thread t = common_;
  const metal::uint3 size = common_.threads_per_threadgroup;
  t.thread_position_in_threadgroup = {index % size.x, index / size.x % size.y,
                                      index / size.x / size.y};
  const metal::uint3 threadgroup = common_.threadgroup_position_in_grid, full = common_.dispatch_threads_per_threadgroup;
  const metal::uint3 at = t.thread_position_in_threadgroup;
  t.thread_position_in_grid = {threadgroup.x * full.x + at.x, threadgroup.y * full.y + at.y, threadgroup.z * full.z + at.z};
  t.thread_index_in_threadgroup = index;
  t.thread_index_in_simdgroup = index % simd_width;
  t.simdgroup_index_in_threadgroup = index / simd_width;
  return t;
}

void Threadgroup::run_lanes() {
  for (uint index = 0; index < n_; ++index) body_(buffers_, thread(index));
}

void Threadgroup::run_fibers() {
  threadgroup_barrier_ = {.members = n_};
  for (uint i = 0; i * simd_width < n_; ++i) {
    simd_barriers_[i] = {.members = std::min(simd_width, n_ - i * simd_width)};
  }
  alive_.resize(n_);
  for (uint i = 0; i < n_; ++i) {
    alive_[i] = i;
    MetalThread& member = threads_[i];
    member.thread = thread(i);
    member.threadgroup = this;
    member.finished = false;
    member.barrier = nullptr;
    member.shown = 0;
    member.passed = {};
    if (!member.begun) member.fiber.begin((*stacks_)[i], fiber_main, &member);
    member.begun = true;
  }
  // Under schedule fuzzing any thread is next, or, in half of the threadgroups, a simdgroup is as far ahead as the others let it be.
  const bool one_ahead = launch_.uses_barriers != 0 && random_.below(2) == 0;
  const uint ahead = one_ahead ? random_.below((n_ + simd_width - 1) / simd_width) * simd_width : 0;
  std::size_t next = 0;
  while (!alive_.empty()) {
    if (launch_.fuzz_period != 0) next = one_ahead ? ahead : random_.below(static_cast<uint>(alive_.size()));
    next = next_ready(next);
    MetalThread& member = threads_[alive_[next]];
    current_ = &member;
    member.fiber.enter();
    current_ = nullptr;
    if (failure_) throw Failure(*failure_);
    if (!member.finished) {
      ++next;
      continue;
    }
    alive_[next] = alive_.back();
    alive_.pop_back();
  }
}

// The first member from `from` on that need not wait.
std::size_t Threadgroup::next_ready(std::size_t from) const {
  for (std::size_t step = 0; step < alive_.size(); ++step) {
    std::size_t i = (from + step) % alive_.size();
    const MetalThread& member = threads_[alive_[i]];
    if (member.barrier == nullptr || member.barrier->openings != member.openings) return i;
  }
  report_divergence();
}

void Threadgroup::fiber_main(void* argument) {
  auto& member = *static_cast<MetalThread*>(argument);
  for (;;) {  // a threadgroup each time
    try {
      member.threadgroup->body_(member.threadgroup->buffers_, member.thread);
    } catch (const std::exception& error) {
      member.threadgroup->failure_ = error.what();
    }
    member.finished = true;
    member.fiber.leave();
  }
}

void Threadgroup::require_lockstep(SourceLocation location) const {
  if (launch_.uses_barriers == 0) {
    throw Failure(name(location) + " in a kernel that is not declared with uses_barriers=True");
  }
}

void Threadgroup::arrive(Barrier& barrier, SourceLocation location) {
  if (barrier.arrived == 0) {
    barrier.location = location;
  } else if (!same(barrier.location, location)) {
    throw Failure("divergent barrier: thread " +
                  std::to_string(current_->thread.thread_index_in_threadgroup) + " waits in " +
                  name(location) + ", others in " + name(barrier.location));
  }
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.openings;
    return;
  }
  current_->barrier = &barrier;
  current_->openings = barrier.openings;
  current_->fiber.leave();
  current_->barrier = nullptr;
}

void Threadgroup::arrive_at_threadgroup(SourceLocation location, uint flags) {
  require_lockstep(location);
  arrive(threadgroup_barrier_, location);
  current_->passed.pass(flags, true);
}

void Threadgroup::arrive_at_simdgroup(SourceLocation location, uint flags) {
  require_lockstep(location);
  arrive(simd_barriers_[current_->thread.simdgroup_index_in_threadgroup], location);
  current_->passed.pass(flags, false);
}

void Threadgroup::note_access(const void* at, std::size_t bytes, bool writes) {
  if (current_ == nullptr || stacks_->holds(at)) return;  // a variable of a thread's own
  MetalThread& member = *current_;
  const uint thread = member.thread.thread_index_in_threadgroup;
  const char* wrong = accesses_.note(thread, member.passed, reinterpret_cast<std::uintptr_t>(at), bytes, writes);
  if (wrong == nullptr) return;
  failure_ = "unordered access: thread " + std::to_string(thread) + " of a threadgroup " + wrong +
             ", and no barrier of both with the flag of this memory is between them";
  member.fiber.leave();  // for ever; a compiler does not expect an exception here
}

Values Threadgroup::publish(const void* value, uint bytes, SourceLocation location) {
  require_lockstep(location);
  const Thread& thread = current_->thread;
  const uint simdgroup = thread.simdgroup_index_in_threadgroup;
  std::byte* set = &shown_[(simdgroup * 2 + current_->shown++ % 2) * set_bytes];
  std::memcpy(set + 16 * thread.thread_index_in_simdgroup, value, bytes);
  arrive(simd_barriers_[simdgroup], location);
  return {set, thread.thread_index_in_simdgroup, simd_barriers_[simdgroup].members};
}

void Threadgroup::poison_once(void* variable, std::size_t bytes, ulong& filled_for) {
  if (filled_for == serial_) return;
  filled_for = serial_;
  std::memset(variable, 0xff, bytes);
  accesses_.add(variable, bytes);
  threadgroup_bytes_ += bytes;
  if (threadgroup_bytes_ > max_threadgroup_bytes) {
    throw Failure("threadgroup memory of " + std::to_string(threadgroup_bytes_) +
                  " bytes; a GPU has 32768");
  }
}

void Threadgroup::switch_at_random() {
  if (launch_.fuzz_period == 0 || random_.below(launch_.fuzz_period) != 0) return;
  // To another OS thread only at times: on a busy machine each yield hands the core to another program.
  if (!alone_ && random_.below(os_switch_period) == 0) sched_yield();
  current_->fiber.leave();
}

void Threadgroup::report_divergence() const {
  std::string message = "divergent barrier: ";
  for (const Barrier* barrier = nullptr; uint i : alive_) {
    const MetalThread& member = threads_[i];
    if (member.barrier == barrier) continue;
    barrier = member.barrier;
    message += "thread " + std::to_string(i) + " waits in " + name(barrier->location) + ", ";
  }
  throw Failure(message + std::to_string(n_ - alive_.size()) + " of the threadgroup's " +
                std::to_string(n_) + " threads have returned");
}

}  // namespace metal_emulator
