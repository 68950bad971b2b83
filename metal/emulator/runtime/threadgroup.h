// One threadgroup: its Metal threads run one after another, or as fibers that wait at barriers and switch.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "accesses.h"
#include "fibers.h"
#include "random.h"
#include "shim/launch.h"
#include "shim/runtime.h"

namespace metal_emulator {

// Index `index` of a box of `size`, x fastest.
inline metal::uint3 position_in(metal::uint3 size, uint index) {
  return {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

// Runs threadgroups on one OS thread, one at a time.
class Threadgroup {
 public:
  // `common`: what all threads of the launch have in common.
  Threadgroup(Body body, void* const* buffers, const Launch& launch, const Thread& common, bool alone);

  // Runs the threadgroup at `position`, counted in threadgroups. Throws an exception that says why it failed.
  void run(metal::uint3 position);

  void arrive_at_threadgroup(SourceLocation location, uint flags);
  void arrive_at_simdgroup(SourceLocation location, uint flags);
  Values publish(const void* value, uint bytes, SourceLocation location);
  void poison_once(void* variable, std::size_t bytes, ulong& filled_for);
  void switch_at_random();
  void note_access(const void* at, std::size_t bytes, bool writes);

 private:
  // Opens for all once the last thread has arrived.
  struct Barrier {
    uint expected = 0, arrived = 0;
    ulong generation = 0;
    SourceLocation location{};
  };
  // A thread's progress through its threadgroup.
  struct Progress {
    bool finished = false;
    const Barrier* barrier = nullptr;  // where it waits
    ulong generation = 0;              // of the barrier when it arrived
    ulong published = 0;               // values for its simdgroup
    Passed passed;
  };
  struct MetalThread : Progress {
    Fiber fiber;  // serves one threadgroup after another
    Thread thread;
    Threadgroup* threadgroup = nullptr;  // null before the fiber begins
  };

  void describe(metal::uint3 position);
  Thread thread(uint index) const;
  void run_fibers();
  static void fiber_main(void* metal_thread);
  MetalThread& current(SourceLocation location) const;
  void arrive(Barrier& barrier, SourceLocation location);
  std::size_t next_ready(std::size_t from) const;
  [[noreturn]] void report_divergence() const;

  Body body_;
  void* const* buffers_;
  const Launch& launch_;
  Thread common_;  // of the threads of this threadgroup
  bool alone_;
  uint n_ = 0;
  ulong serial_ = 0;
  std::size_t threadgroup_bytes_ = 0;
  ulong seed_;  // of the launch
  Random random_{0};

  std::optional<Stacks> stacks_;
  std::vector<MetalThread> threads_;
  std::vector<uint> alive_;  // indices of threads that have not returned
  Barrier threadgroup_barrier_;
  std::vector<Barrier> simd_barriers_;
  // Published values of each simdgroup: two sets, because the first threads publish the next value while the last still
  // read this one.
  std::vector<std::byte> published_;
  MetalThread* current_ = nullptr;
  Accesses accesses_;
  std::optional<std::string> failure_;
};

}  // namespace metal_emulator
