#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

namespace metal_emulator {
namespace {

std::mutex spare_lock;
std::vector<std::byte*> spare;  // mapped, in use by no launch

}  // namespace

Stacks::Stacks() {
  {
    std::lock_guard guard(spare_lock);
    if (!spare.empty()) {
      base_ = spare.back();
      spare.pop_back();
      return;
    }
  }
  void* pages = mmap(nullptr, most * bytes_each, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<std::byte*>(pages);
}

Stacks::~Stacks() {
  std::lock_guard guard(spare_lock);
  spare.push_back(base_);
}

}  // namespace metal_emulator

#ifdef MLXHOG_FIBERS_BY_UCONTEXT

namespace metal_emulator {
namespace {

// makecontext passes ints, so pointers travel in halves.
void start(unsigned function_high, unsigned function_low, unsigned argument_high, unsigned argument_low) {
  auto joined = [](unsigned high, unsigned low) {
    return static_cast<std::uintptr_t>(static_cast<std::uint64_t>(high) << 32 | low);
  };
  auto* function = reinterpret_cast<void (*)(void*)>(joined(function_high, function_low));
  function(reinterpret_cast<void*>(joined(argument_high, argument_low)));
}

}  // namespace

void Fiber::begin(std::byte* stack, void (*function)(void*), void* argument) {
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack;
  inside_.uc_stack.ss_size = Stacks::bytes_each;
  inside_.uc_link = nullptr;
  auto at = reinterpret_cast<std::uintptr_t>(function);
  auto with = reinterpret_cast<std::uintptr_t>(argument);
  makecontext(&inside_, reinterpret_cast<void (*)()>(start), 4, static_cast<unsigned>(at >> 32),
              static_cast<unsigned>(at), static_cast<unsigned>(with >> 32), static_cast<unsigned>(with));
}

void Fiber::enter() { swapcontext(&outside_, &inside_); }
void Fiber::leave() { swapcontext(&inside_, &outside_); }

}  // namespace metal_emulator

#else

// swapcontext without its system call, which took most of the time: the registers that a function
// preserves (System V ABI, x86-64) go onto the stack, and the stack pointer changes.
asm(R"(
  .text
  .type mlxhog_switch_stack, @function
mlxhog_switch_stack:      # rdi: where this stack pointer is kept, rsi: the other one
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size mlxhog_switch_stack, . - mlxhog_switch_stack

  .type mlxhog_start_fiber, @function
mlxhog_start_fiber:       # rbx: the function, r12: its argument
  movq %r12, %rdi
  callq *%rbx
  ud2
  .size mlxhog_start_fiber, . - mlxhog_start_fiber
)");

extern "C" {
__attribute__((visibility("hidden"))) void mlxhog_switch_stack(void** from, void* to);
__attribute__((visibility("hidden"))) void mlxhog_start_fiber();
}

namespace metal_emulator {

void Fiber::begin(std::byte* stack, void (*function)(void*), void* argument) {
  auto** top = reinterpret_cast<void**>(stack + Stacks::bytes_each);  // aligned to 16 bytes
  *--top = nullptr;                                                   // keeps calls aligned
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(mlxhog_start_fiber);  // where switching returns to
  *--top = nullptr;                                      // rbp
  *--top = reinterpret_cast<void*>(function);            // rbx
  *--top = argument;                                     // r12
  for (int i = 0; i < 3; ++i) *--top = nullptr;          // r13 to r15
  inside_ = top;
}

void Fiber::enter() { mlxhog_switch_stack(&outside_, inside_); }
void Fiber::leave() { mlxhog_switch_stack(&inside_, outside_); }

}  // namespace metal_emulator

#endif
