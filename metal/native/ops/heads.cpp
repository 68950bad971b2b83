#include "heads.h"

namespace mlxhog {

MLXHOG_CLONES void copy_rows(Index rows, Index width, const float* from, Index from_ld, float* to, Index to_ld,
                             Index padded, float factor) {
  for (Index r = 0; r < rows; ++r, from += from_ld, to += to_ld) {
#pragma omp simd
    for (Index j = 0; j < width; ++j) to[j] = factor * from[j];
    for (Index j = width; j < padded; ++j) to[j] = 0.0f;
  }
}

}  // namespace mlxhog
