// Memory for intermediate results of an operator: not initialised, and aligned to a cache line, since vector loads
// that cross lines cost 10 % of gemm's speed.
#pragma once

#include <memory>
#include <new>

#include "simd.h"

namespace mlxhog {

inline constexpr std::size_t kLine = 64;  // bytes

struct FreeLines {
  void operator()(float* p) const { ::operator delete[](p, std::align_val_t(kLine)); }
};
using Buffer = std::unique_ptr<float[], FreeLines>;

inline Buffer uninitialised(Index count) { return Buffer(new (std::align_val_t(kLine)) float[count]); }

}  // namespace mlxhog
