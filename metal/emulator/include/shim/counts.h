// With -DMLXHOG_COUNT a kernel library counts operations of its threads in `mlxhog_counts`, which tests read.
#pragma once

#include "shim/types.h"

namespace metal_emulator {

enum Operation : uint { kExponential, kMultiplyAdd };  // the latter of matrices

#ifdef MLXHOG_COUNT
extern "C" {
__attribute__((used)) ulong mlxhog_counts[2];
}
#endif

inline void count([[maybe_unused]] Operation operation, [[maybe_unused]] ulong n = 1) {
#ifdef MLXHOG_COUNT
  __atomic_fetch_add(&mlxhog_counts[operation], n, __ATOMIC_RELAXED);
#endif
}

}  // namespace metal_emulator
