// Fibers: functions with stacks of their own that one OS thread runs in turns.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <vector>

namespace metal_host {

// Stacks for the fibers of one threadgroup, given back to the process for the next launch.
class Stacks {
 public:
  static constexpr std::size_t bytes_each = 128 * 1024;  // build.py limits what a function may use
  static constexpr std::size_t most = 1024;

  Stacks();
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  std::byte* operator[](std::size_t i) const { return base_ + i * bytes_each; }

 private:
  std::byte* base_;
};

// One suspended computation. `enter` runs it from the side of the scheduler, `leave` returns there
// from inside; it continues at the next `enter`.
class Fiber {
 public:
  void begin(std::byte* stack, void (*entry)(void*), void* argument);
  void enter();
  void leave();

 private:
  ucontext_t inside_;
  ucontext_t outside_;
};

}  // namespace metal_host
