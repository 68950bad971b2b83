// One threadgroup: its Metal threads run one after another, or as fibers that can meet and switch.
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

// Runs threadgroups on one OS thread, one at a time.
class Threadgroup {
 public:
  Threadgroup(Body body, void* const* buffers, const Launch& launch, bool alone);

  // Runs the threadgroup at `position`, counted in threadgroups. Throws Failure.
  void run(metal::uint3 position);

  void arrive_at_threadgroup(SourceLocation location, uint flags);
  void arrive_at_simdgroup(SourceLocation location, uint flags);
  Values publish(const void* value, uint bytes, SourceLocation location);
  void poison_once(void* variable, std::size_t bytes, ulong& filled_for);
  void switch_at_random();
  void note_access(const void* at, std::size_t bytes, bool writes);

 private:
  // Where threads meet: open for all once the last one has come.
  struct Barrier {
    uint members = 0;
    uint arrived = 0;
    ulong openings = 0;
    SourceLocation location{};
  };
  struct MetalThread {
    Fiber fiber;
    Thread thread;
    Threadgroup* threadgroup;
    bool begun = false;  // its fiber, which serves one threadgroup after another
    bool finished;
    const Barrier* barrier;  // where it waits, or null
    ulong openings;    // of the barrier when it came
    ulong shown;       // how many values it has shown to its simdgroup
    Passed passed;
  };

  void describe(metal::uint3 position);
  Thread thread(uint index) const;
  void run_lanes();
  void run_fibers();
  static void fiber_main(void* member);
  void require_lockstep(SourceLocation location) const;
  void arrive(Barrier& barrier, SourceLocation location);
  std::size_t next_ready(std::size_t from) const;
  [[noreturn]] void report_divergence() const;

  Body body_;
  void* const* buffers_;
  const Launch& launch_;
  bool alone_;
  Thread common_{};  // what all threads of the threadgroup have in common
  uint n_ = 0;
  ulong serial_ = 0;
  std::size_t threadgroup_bytes_ = 0;
  ulong seed_;  // of the launch
  Random random_{0};

  std::optional<Stacks> stacks_;
  std::vector<MetalThread> threads_;
  std::vector<uint> alive_;  // indices of members that have not returned
  Barrier threadgroup_barrier_;
  std::vector<Barrier> simd_barriers_;
  // Values shown, of each simdgroup in turn: two sets, because the first threads show the next value
  // while the last still read this one.
  std::vector<std::byte> shown_;
  MetalThread* current_ = nullptr;
  Accesses accesses_;
  std::optional<std::string> failure_;
};

}  // namespace metal_emulator
