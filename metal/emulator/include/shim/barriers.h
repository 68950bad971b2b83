// Barriers of a threadgroup and of a simdgroup. The default argument is the caller's place in the
// source: a barrier opens only when all threads wait at the same one. The flags say of which memory
// the writes before it are seen behind it, see `runtime/accesses.h`.
#pragma once

#include "shim/runtime.h"

namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };

constexpr mem_flags operator|(mem_flags a, mem_flags b) { return static_cast<mem_flags>(uint(a) | uint(b)); }

inline void threadgroup_barrier(mem_flags flags, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  metal_emulator::wait_for_threadgroup({"threadgroup_barrier", file, line}, uint(flags));
}

inline void simdgroup_barrier(mem_flags flags, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  metal_emulator::wait_for_simdgroup({"simdgroup_barrier", file, line}, uint(flags));
}

}  // namespace metal
