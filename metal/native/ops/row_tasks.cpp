#include "row_tasks.h"

namespace mlxhog {

MLXHOG_CLONES void add_to(Index count, const float* x, float* sum) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) sum[j] += x[j];
}

}  // namespace mlxhog
