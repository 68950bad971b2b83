// The part of the runtime (`runtime/`) that kernels need: barriers and published values.
#pragma once

#include "shim/types.h"

namespace metal_emulator {

constexpr uint simd_width = 32;

// A call in the Metal source.
struct SourceLocation {
  const char* call;
  const char* file;
  int line;
};

// Waits until every thread of the threadgroup (simdgroup) stands at the same location. Throws where the
// kernel was not declared to use barriers, or where threads wait at different ones. `flags` are Metal's.
void wait_for_threadgroup(SourceLocation location, uint flags);
void wait_for_simdgroup(SourceLocation location, uint flags);

// The values of a simdgroup's existing threads, 16 bytes for each, valid until the thread's next barrier.
struct Values {
  const std::byte* bytes;
  uint self;
  uint n;
};
Values publish(const void* value, uint bytes, SourceLocation location);

template <typename T>
struct Lanes : Values {
  T operator[](uint lane) const {
    T value;
    __builtin_memcpy(&value, bytes + 16 * lane, sizeof value);
    return value;
  }
  // The value of a lane; undefined in Metal if the lane does not exist.
  T at(uint lane) const {
    if (lane < n) return (*this)[lane];
    T value;
    __builtin_memset(&value, 0xff, sizeof value);
    return value;
  }
};

template <typename T>
Lanes<T> published(const T& value, SourceLocation location) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  return {publish(&value, sizeof value, location)};
}

// Fills a variable in threadgroup memory with 0xff, once for each threadgroup: a word that is read
// before it is written is a NaN. `filled_for` belongs to the variable.
void poison_once(void* variable, std::size_t bytes, ulong& filled_for);

// Before a thread reads or writes memory; ends the launch where no barrier orders that, see `runtime/accesses.h`.
void note_access(const void* at, std::size_t bytes, bool writes);

// Schedule fuzzing: whether another thread of the threadgroup runs first. `fuzzed_launches` are running now; a launch
// without it beside them never switches.
extern int fuzzed_launches;
void switch_at_random();

inline void race_point() {
  if (__atomic_load_n(&fuzzed_launches, __ATOMIC_RELAXED) != 0) [[unlikely]]
    switch_at_random();
}

}  // namespace metal_emulator
