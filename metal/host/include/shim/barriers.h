// Barriers of a threadgroup and of a simd-group. The default argument is the caller's place in the
// source: a barrier opens only when all threads wait at the same one.
#pragma once

#include "shim/runtime.h"

namespace metal {

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

inline void threadgroup_barrier(mem_flags, const char* file = __builtin_FILE(),
                                int line = __builtin_LINE()) {
  metal_host::wait_for_group({"threadgroup_barrier", file, line});
}

inline void simdgroup_barrier(mem_flags, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  metal_host::wait_for_simdgroup({"simdgroup_barrier", file, line});
}

}  // namespace metal
