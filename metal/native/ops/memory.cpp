#include "memory.h"

#include <cstdint>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mlxhog {
namespace {

[[maybe_unused]] constexpr int kLargestKept = 32 << 20;  // what mallopt accepts as a threshold on 64-bit machines

}  // namespace

bool keep_freed_memory() {
#if defined(__GLIBC__)
  return mallopt(M_MMAP_THRESHOLD, kLargestKept) == 1 && mallopt(M_TRIM_THRESHOLD, 1 << 30) == 1;
#else
  return false;
#endif
}

void advise_huge_pages([[maybe_unused]] const float* data, [[maybe_unused]] Index count) {
#if defined(__linux__)
  constexpr std::uintptr_t kPage = 2 << 20;
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t bytes = sizeof(float) * static_cast<std::uintptr_t>(count);
  if (bytes < kLargestKept) return;
  const std::uintptr_t begin = (at + kPage - 1) / kPage * kPage, end = (at + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // refused where there are none: no loss
#endif
}

}  // namespace mlxhog
