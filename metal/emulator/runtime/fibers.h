// Fibers: functions with stacks of their own that one OS thread runs in turns.
#pragma once

#include <cstddef>

// The other way is in the assembler's words for ELF, which Apple's does not know.
#if !defined(__x86_64__) || defined(__APPLE__) || defined(MLXHOG_UCONTEXT)
#define MLXHOG_FIBERS_BY_UCONTEXT
#include <ucontext.h>
#endif

namespace metal_emulator {

// Stacks for the fibers of one threadgroup, kept for the next launch when it ends.
class Stacks {
 public:
  static constexpr std::size_t bytes_each = 128 * 1024;  // build.py limits what a function may use
  static constexpr std::size_t most = 1024;

  Stacks();
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  std::byte* operator[](std::size_t i) const { return base_ + i * bytes_each; }
  bool holds(const void* at) const { return at >= base_ && at < base_ + most * bytes_each; }

 private:
  std::byte* base_;
};

// One suspended computation. The scheduler runs it by `enter` until it calls `leave`; its function never returns. To
// begin one is slow on Apple's arm64, where makecontext zeroes the whole stack (capnproto 1387).
class Fiber {
 public:
  void begin(std::byte* stack, void (*function)(void*), void* argument);
  void enter();
  void leave();

 private:
#ifdef MLXHOG_FIBERS_BY_UCONTEXT
  ucontext_t inside_, outside_;
#else
  void *inside_, *outside_;  // stack pointers
#endif
};

}  // namespace metal_emulator
