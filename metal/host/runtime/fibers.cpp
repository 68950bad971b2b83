#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <new>

namespace metal_host {
namespace {

std::mutex spare_lock;
std::vector<std::byte*> spare;  // mapped, in use by no launch

// makecontext passes ints, so pointers travel in halves.
void start(unsigned entry_high, unsigned entry_low, unsigned argument_high, unsigned argument_low) {
  auto joined = [](unsigned high, unsigned low) {
    return static_cast<std::uintptr_t>(static_cast<std::uint64_t>(high) << 32 | low);
  };
  auto* entry = reinterpret_cast<void (*)(void*)>(joined(entry_high, entry_low));
  entry(reinterpret_cast<void*>(joined(argument_high, argument_low)));
}

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

void Fiber::begin(std::byte* stack, void (*entry)(void*), void* argument) {
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack;
  inside_.uc_stack.ss_size = Stacks::bytes_each;
  inside_.uc_link = &outside_;
  auto at = reinterpret_cast<std::uintptr_t>(entry);
  auto with = reinterpret_cast<std::uintptr_t>(argument);
  makecontext(&inside_, reinterpret_cast<void (*)()>(start), 4, static_cast<unsigned>(at >> 32),
              static_cast<unsigned>(at), static_cast<unsigned>(with >> 32),
              static_cast<unsigned>(with));
}

void Fiber::enter() { swapcontext(&outside_, &inside_); }
void Fiber::leave() { swapcontext(&inside_, &outside_); }

}  // namespace metal_host
