// Memory of the operators: intermediate results, and requests to the system. Every step allocates and frees
// activations, and a block that malloc returned to the kernel costs a page fault for every 4 KiB at its next use.
#pragma once

#include <memory>
#include <new>

#include "simd.h"

namespace mlxhog {

inline constexpr std::size_t kLine = 64;  // bytes

struct FreeLines {
  void operator()(float* p) const { ::operator delete[](p, std::align_val_t(kLine)); }
};
// Not initialized, and aligned to a cache line: vector loads that cross lines cost 10 % of gemm's speed.
using Buffer = std::unique_ptr<float[], FreeLines>;

inline Buffer uninitialized(Index count) { return Buffer(new (std::align_val_t(kLine)) float[count]); }

// Lets malloc keep freed blocks for the next step (glibc; process-wide); false where malloc has no such switch.
// Saves 5 % of a step.
bool keep_freed_memory();

// Asks for a block that is too large for malloc to keep in pages of 2 MiB (Linux), before anything is written there: an
// mLSTM cell over 16,384 positions is 30 % faster. Smaller blocks are left as they are.
void advise_huge_pages(const float* data, Index count);

}  // namespace mlxhog
