// A barrier orders the accesses to the memory that its flags name, and no others. A read is refused of a word that another
// thread of the threadgroup has written, and so is a write to a word of threadgroup memory that another has read, if no
// barrier of both with the memory's flag is between them, in whatever order they happen to run. The compiler's calls for
// a kernel's address sanitizer report accesses (`build.py`); of device memory the last written words are known.
#pragma once

#include <cstdint>
#include <vector>

#include "shim/types.h"

namespace metal_emulator {

enum Space : uint { kDevice, kThreadgroup };  // bit s of a barrier's flags is that of space s

// How many barriers a thread has passed, for each space.
struct Passed {
  uint threadgroup[2] = {}, simdgroup[2] = {};

  void pass(uint flags, bool of_threadgroup) {
    for (uint space = 0; space < 2; ++space) (of_threadgroup ? threadgroup : simdgroup)[space] += flags >> space & 1;
  }
};

class Accesses {
 public:
  Accesses() : device_(kDeviceWords), threadgroup_(kThreadgroupWords + kMaxVariables) {}

  // A new threadgroup, of which nothing is known; `serial` is its own.
  void begin(ulong serial) { serial_ = serial, variables_.clear(); }

  // A variable in threadgroup memory.
  void add(const void* variable, std::size_t bytes);

  // Notes an access by a thread; returns what the thread does against the order, or null.
  const char* note(uint thread, const Passed& passed, std::uintptr_t at, std::size_t bytes, bool writes);

 private:
  static constexpr std::size_t kThreadgroupWords = 32 * 1024 / 4, kMaxVariables = 64, kDeviceWords = 1 << 13;
  static constexpr uint kSeveral = ~0u;

  // When a word was accessed: by which thread, or by several, of which simdgroup, or of several.
  struct Access {
    uint thread, simdgroup, threadgroup_passed, simdgroup_passed;
  };
  struct Word {
    ulong written_in = 0, read_in = 0;  // the threadgroup's serial
    std::uintptr_t at = 0;
    Access write{}, read{};
  };
  struct Variable {
    std::uintptr_t at;
    std::size_t bytes, word;
  };

  static bool is_ordered(const Access& before, const Access& now);
  void note_read(Word& word, const Access& now) const;

  ulong serial_ = 0;
  std::vector<Word> device_, threadgroup_;
  std::vector<Variable> variables_;
};

}  // namespace metal_emulator
