// The interface of a kernel library and the runtime; translate.py puts this before every Metal text.
#pragma once

#include "shim/types.h"

namespace metal_emulator {

// Values that Metal gives a thread about itself; names as in its attributes.
struct Thread {
  metal::uint3 thread_position_in_grid;
  metal::uint3 thread_position_in_threadgroup;
  metal::uint3 threadgroup_position_in_grid;
  metal::uint3 threads_per_grid;
  metal::uint3 threadgroups_per_grid;
  metal::uint3 threads_per_threadgroup;           // fewer in a ragged threadgroup
  metal::uint3 dispatch_threads_per_threadgroup;  // as launched
  uint thread_index_in_threadgroup;
  uint thread_index_in_simdgroup;
  uint simdgroup_index_in_threadgroup;
  uint simdgroups_per_threadgroup;
};

// Runs one Metal thread.
using Body = void (*)(void* const* buffers, const Thread& thread);

// One launch; Python fills it (engine.py), field by field.
struct Launch {
  std::uint32_t grid[3];   // threads
  std::uint32_t threads_per_threadgroup[3];  // threads
  std::uint32_t os_threads;
  std::uint32_t uses_barriers;
  std::uint32_t fuzz_period;  // threads switch at one of this number of race points; 0: never
  std::uint32_t message_bytes;
  std::uint64_t seed;
  char* message;  // receives the reason of a failure
};

// Returns 0, or 1 after a failure; the kernel may have written part of its results then.
int run(Body body, void* const* buffers, const Launch& launch);

}  // namespace metal_emulator
