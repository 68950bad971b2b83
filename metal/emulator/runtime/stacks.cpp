#include <sys/mman.h>

#include <mutex>
#include <new>

#include "fibers.h"

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
