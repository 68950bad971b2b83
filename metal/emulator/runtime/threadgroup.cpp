#include "threadgroup.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace metal_emulator {
namespace {

constexpr std::size_t max_threadgroup_bytes = 32 * 1024;
constexpr std::size_t set_bytes = simd_width * 16;
constexpr uint os_switch_period = 64;

std::atomic<ulong> last_serial{0};

// Why a launch failed. Thrown inside a Metal thread, caught before it ends, reported to Python.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string name(const SourceLocation& location) {
  return std::string(location.call) + " at " + location.file + ":" + std::to_string(location.line);
}

bool same(const SourceLocation& a, const SourceLocation& b) {
  return a.line == b.line && std::strcmp(a.call, b.call) == 0 && std::strcmp(a.file, b.file) == 0;
}

}  // namespace

Threadgroup::Threadgroup(Body body, void* const* buffers, const Launch& launch, const Thread& common, bool alone)
    : body_(body), buffers_(buffers), launch_(launch), common_(common), alone_(alone),
      seed_(Random(launch.seed).next()) {
  if (launch.uses_barriers == 0 && launch.fuzz_period == 0) return;
  const metal::uint3 size = common.dispatch_threads_per_threadgroup;
  stacks_.emplace();
  threads_.resize(size.x * size.y * size.z);
  simd_barriers_.resize((threads_.size() + simd_width - 1) / simd_width);
  published_.resize(simd_barriers_.size() * 2 * set_bytes);
}

void Threadgroup::run(metal::uint3 position) {
  describe(position);
  if (!threads_.empty()) return run_fibers();
  for (uint index = 0; index < n_; ++index) body_(buffers_, thread(index));
}

void Threadgroup::describe(metal::uint3 position) {
  metal::uint3& size = common_.threads_per_threadgroup;
  common_.threadgroup_position_in_grid = position;
  for (uint axis = 0; axis < 3; ++axis) {
    const uint full = common_.dispatch_threads_per_threadgroup[axis];
    size[axis] = std::min(full, common_.threads_per_grid[axis] - position[axis] * full);
  }
  n_ = size.x * size.y * size.z;
  common_.simdgroups_per_threadgroup = (n_ + simd_width - 1) / simd_width;
  serial_ = last_serial.fetch_add(1, std::memory_order_relaxed) + 1;
  threadgroup_bytes_ = 0;
  accesses_.begin(serial_);
  // Schedule fuzzing depends on the threadgroup alone, not on the OS thread that happens to run it.
  const metal::uint3 all = common_.threadgroups_per_grid;
  random_ = Random(seed_ + (position.z * all.y + position.y) * ulong(all.x) + position.x);
}

Thread Threadgroup::thread(uint index) const {
  Thread t = common_;
  t.thread_position_in_threadgroup = position_in(t.threads_per_threadgroup, index);
  for (uint axis = 0; axis < 3; ++axis)
    t.thread_position_in_grid[axis] = t.threadgroup_position_in_grid[axis] * t.dispatch_threads_per_threadgroup[axis] +
                                      t.thread_position_in_threadgroup[axis];
  t.thread_index_in_threadgroup = index;
  t.thread_index_in_simdgroup = index % simd_width;
  t.simdgroup_index_in_threadgroup = index / simd_width;
  return t;
}

void Threadgroup::run_fibers() {
  threadgroup_barrier_ = {.expected = n_};
  for (uint i = 0; i * simd_width < n_; ++i)
    simd_barriers_[i] = {.expected = std::min(simd_width, n_ - i * simd_width)};
  alive_.resize(n_);
  for (uint i = 0; i < n_; ++i) {
    alive_[i] = i;
    MetalThread& own = threads_[i];
    static_cast<Progress&>(own) = {};
    own.thread = thread(i);
    if (own.threadgroup == nullptr) own.fiber.begin((*stacks_)[i], fiber_main, &own);
    own.threadgroup = this;
  }
  // Under schedule fuzzing any thread is next, or, in half of the threadgroups, one simdgroup runs as far ahead as the
  // others let it.
  const bool one_ahead = launch_.uses_barriers != 0 && random_.below(2) == 0;
  const uint ahead = one_ahead ? random_.below((n_ + simd_width - 1) / simd_width) * simd_width : 0;
  std::size_t next = 0;
  while (!alive_.empty()) {
    if (launch_.fuzz_period != 0) next = one_ahead ? ahead : random_.below(static_cast<uint>(alive_.size()));
    next = next_ready(next);
    current_ = &threads_[alive_[next]];
    current_->fiber.enter();
    if (failure_) throw Failure(*failure_);
    if (!std::exchange(current_, nullptr)->finished) {
      ++next;
      continue;
    }
    alive_[next] = alive_.back();
    alive_.pop_back();
  }
}

// The first thread from `from` on that need not wait.
std::size_t Threadgroup::next_ready(std::size_t from) const {
  for (std::size_t step = 0; step < alive_.size(); ++step) {
    std::size_t i = (from + step) % alive_.size();
    const MetalThread& own = threads_[alive_[i]];
    if (own.barrier == nullptr || own.barrier->generation != own.generation) return i;
  }
  report_divergence();
}

void Threadgroup::fiber_main(void* argument) {
  auto& own = *static_cast<MetalThread*>(argument);
  for (;;) {  // a threadgroup each time
    try {
      own.threadgroup->body_(own.threadgroup->buffers_, own.thread);
    } catch (const std::exception& error) {
      own.threadgroup->failure_ = error.what();
    }
    own.finished = true;
    own.fiber.leave();
  }
}

// The thread that runs, in a kernel that may wait for others.
Threadgroup::MetalThread& Threadgroup::current(SourceLocation location) const {
  if (launch_.uses_barriers == 0)
    throw Failure(name(location) + " in a kernel that is not declared with uses_barriers=True");
  return *current_;
}

void Threadgroup::arrive(Barrier& barrier, SourceLocation location) {
  if (barrier.arrived == 0) barrier.location = location;
  if (!same(barrier.location, location))
    throw Failure("divergent barrier: thread " + std::to_string(current_->thread.thread_index_in_threadgroup) +
                  " waits in " + name(location) + ", others in " + name(barrier.location));
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  current_->barrier = &barrier;
  current_->generation = barrier.generation;
  current_->fiber.leave();
  current_->barrier = nullptr;
}

void Threadgroup::arrive_at_threadgroup(SourceLocation location, uint flags) {
  MetalThread& own = current(location);
  arrive(threadgroup_barrier_, location);
  own.passed.pass(flags, true);
}

void Threadgroup::arrive_at_simdgroup(SourceLocation location, uint flags) {
  MetalThread& own = current(location);
  arrive(simd_barriers_[own.thread.simdgroup_index_in_threadgroup], location);
  own.passed.pass(flags, false);
}

void Threadgroup::note_access(const void* at, std::size_t bytes, bool writes) {
  if (current_ == nullptr || stacks_->holds(at)) return;  // a variable of a thread's own
  const uint thread = current_->thread.thread_index_in_threadgroup;
  const char* wrong = accesses_.note(thread, current_->passed, reinterpret_cast<std::uintptr_t>(at), bytes, writes);
  if (wrong == nullptr) return;
  failure_ = "unordered access: thread " + std::to_string(thread) + " of a threadgroup " + wrong +
             ", and no barrier of both with the flag of this memory is between them";
  current_->fiber.leave();  // for ever; a compiler does not expect an exception here
}

Values Threadgroup::publish(const void* value, uint bytes, SourceLocation location) {
  MetalThread& own = current(location);
  const uint lane = own.thread.thread_index_in_simdgroup, simdgroup = own.thread.simdgroup_index_in_threadgroup;
  std::byte* set = &published_[(simdgroup * 2 + own.published++ % 2) * set_bytes];
  std::memcpy(set + 16 * lane, value, bytes);
  arrive(simd_barriers_[simdgroup], location);
  return {set, lane, simd_barriers_[simdgroup].expected};
}

void Threadgroup::poison_once(void* variable, std::size_t bytes, ulong& filled_for) {
  if (filled_for == serial_) return;
  filled_for = serial_;
  std::memset(variable, 0xff, bytes);
  accesses_.add(variable, bytes);
  threadgroup_bytes_ += bytes;
  if (threadgroup_bytes_ > max_threadgroup_bytes)
    throw Failure("threadgroup memory of " + std::to_string(threadgroup_bytes_) + " bytes; a GPU has 32768");
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
    if (threads_[i].barrier == barrier) continue;
    barrier = threads_[i].barrier;
    message += "thread " + std::to_string(i) + " waits in " + name(barrier->location) + ", ";
  }
  throw Failure(message + std::to_string(n_ - alive_.size()) + " of the threadgroup's " + std::to_string(n_) +
                " threads have returned");
}

}  // namespace metal_emulator
