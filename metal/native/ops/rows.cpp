#include "rows.h"

namespace mlxhog {

MLXHOG_CLONES void copy_rows(Index rows, Index width, const float* from, Index from_ld, float* to, Index to_ld,
                             Index padded, float factor) {
  for (Index r = 0; r < rows; ++r, from += from_ld, to += to_ld) {
#pragma omp simd
    for (Index j = 0; j < width; ++j) to[j] = factor * from[j];
    for (Index j = width; j < padded; ++j) to[j] = 0.0f;
  }
}

MLXHOG_CLONES void add_rows(Index rows, Index width, const float* x, Index ld, float* sum) {
  for (Index r = 0; r < rows; ++r, x += ld) {
#pragma omp simd
    for (Index j = 0; j < width; ++j) sum[j] += x[j];
  }
}

MLXHOG_CLONES void scale(Index count, float factor, float* x) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) x[j] *= factor;
}

MLXHOG_CLONES void exponentials(Index count, float* x) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) x[j] = exp_f32(x[j]);
}

MLXHOG_CLONES float dot(Index count, const float* a, const float* b) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < count; ++j) sum += a[j] * b[j];
  return sum;
}

}  // namespace mlxhog
