#include "accesses.h"

#include <algorithm>

#include "shim/runtime.h"

namespace metal_emulator {

void Accesses::add(const void* variable, std::size_t bytes) {
  const std::size_t word = variables_.empty() ? 0 : variables_.back().word + (variables_.back().bytes + 3) / 4;
  variables_.push_back({reinterpret_cast<std::uintptr_t>(variable), bytes, word});
}

bool Accesses::is_ordered(const Access& before, const Access& now) {
  return before.thread == now.thread || now.threadgroup_passed > before.threadgroup_passed ||
         (before.simdgroup == now.simdgroup && now.simdgroup_passed > before.simdgroup_passed);
}

void Accesses::note_read(Word& word, const Access& now) const {
  Access& read = word.read;
  if (word.read_in != serial_ || read.threadgroup_passed != now.threadgroup_passed) {
    word.read_in = serial_, read = now;
    return;
  }
  if (read.thread != now.thread) read.thread = kSeveral;
  if (read.simdgroup != now.simdgroup) read.simdgroup = kSeveral;
  read.simdgroup_passed = std::max(read.simdgroup_passed, now.simdgroup_passed);
}

const char* Accesses::note(uint thread, const Passed& passed, std::uintptr_t at, std::size_t bytes, bool writes) {
  Space space = kDevice;
  Word* word = nullptr;
  for (const Variable& variable : variables_)
    if (at - variable.at < variable.bytes)
      space = kThreadgroup, word = &threadgroup_[variable.word + (at - variable.at) / 4];
  const Access now{thread, thread / simd_width, passed.threadgroup[space], passed.simdgroup[space]};
  const std::uintptr_t end = (at + bytes) / 4;
  for (std::uintptr_t own = at / 4; own < end; ++own) {  // nothing smaller than a word is watched
    if (space == kDevice) {
      word = &device_[own % kDeviceWords];
      if (word->at != own && writes) *word = {.at = own};
      if (word->at != own) continue;
    }
    if (writes) {
      if (space == kThreadgroup && word->read_in == serial_ && !is_ordered(word->read, now))
        return "overwrites a word of threadgroup memory that another has read";
      word->written_in = serial_, word->write = now;
    } else {
      if (word->written_in == serial_ && !is_ordered(word->write, now))
        return space == kThreadgroup ? "reads a word of threadgroup memory that another has written"
                                     : "reads a word of device memory that another has written";
      if (space == kThreadgroup) note_read(*word, now);
    }
    word += space;
  }
  return nullptr;
}

}  // namespace metal_emulator

// What a compiler calls before each access of a kernel, of 1, 2, 4, 8, 16 or n bytes.
#define MLXHOG_WATCH(KIND, WRITES)                                                                                  \
  extern "C" void __asan_##KIND##1_noabort(const void*) {}                                                          \
  extern "C" void __asan_##KIND##2_noabort(const void*) {}                                                          \
  extern "C" void __asan_##KIND##4_noabort(const void* at) { metal_emulator::note_access(at, 4, WRITES); }              \
  extern "C" void __asan_##KIND##8_noabort(const void* at) { metal_emulator::note_access(at, 8, WRITES); }              \
  extern "C" void __asan_##KIND##16_noabort(const void* at) { metal_emulator::note_access(at, 16, WRITES); }            \
  extern "C" void __asan_##KIND##N_noabort(const void* at, std::size_t n) { metal_emulator::note_access(at, n, WRITES); }
MLXHOG_WATCH(load, false)
MLXHOG_WATCH(store, true)
#undef MLXHOG_WATCH
extern "C" void __asan_handle_no_return() {}
