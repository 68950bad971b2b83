// The matrix product of the system's BLAS, where the build has one.
//
// A Mac takes Accelerate's, which alone reaches the matrix units of its processors: 0.7 to 2.1 TFLOP/s on an M1 Pro
// against 0.1 by NEON on a core. Elsewhere the CMake option MLXHOG_CBLAS names a library, so that the same path is
// tested without a Mac.
#pragma once

#include "simd.h"

namespace mlxhog {

// Whether the build has a BLAS and this system has its `cblas_sgemm`, which is bound weakly.
bool has_blas();

// C = (accumulate ? C : 0) + A B for A (M, K) and B (K, N); element (m, k) of A is at A[m * am + k * ak], and one step
// of each factor is 1. C is row-major with row length ldc, and overlaps neither. Needs `has_blas`.
void blas_gemm(Index M, Index N, Index K, const float* A, Index am, Index ak, const float* B, Index bk, Index bn,
               float* C, Index ldc, bool accumulate);

}  // namespace mlxhog
