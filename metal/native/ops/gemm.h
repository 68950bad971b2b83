// Single-precision matrix product for the operators: ours, or for large matrices that of the system's BLAS.
//
// On AMD processors MKL stays on its AVX2 path, 110 GFLOP/s on one Zen 5 core where this reaches 260; on a Xeon both
// reach 160, and 85 with AVX2. MLX's bundled BLAS on Linux does 8.
#pragma once

#include "simd.h"

namespace mlxhog {

// C[m, n] = (accumulate ? C[m, n] : 0) + sum_k A[m * am + k * ak] * B[k * bk + n], C row-major with row
// length ldc. K = 0 is an empty sum. One thread. C must not overlap A or B.
void gemm(Index M, Index N, Index K, const float* A, Index am, Index ak, const float* B, Index bk,
          float* C, Index ldc, bool accumulate);

// B in the form that `gemm_packed` reads: panels of 32 columns, each (K, 32) without gaps, so that a tile of C
// walks through consecutive lines whatever the width of B is. The last panel is filled up with zeros.
inline constexpr Index kPanel = 32;
inline Index packed_floats(Index K, Index N) { return K * ((N + kPanel - 1) / kPanel * kPanel); }

// Packs panels [first, last) of B[k, n] = from[k * k_step + n * n_step]; one of the steps is 1.
void pack(Index K, Index N, const float* from, Index k_step, Index n_step, Index first, Index last, float* panels);

// The same for a product in bfloat16, VNNI-packed: pairs of numbers, neighbors along k, in the place of floats, up to
// the next multiple of 32 along k. They fit in `packed_floats` of a K of at least `kMinVnni`.
inline constexpr Index kMinVnni = 16;
void pack_vnni(Index K, Index N, const float* from, Index k_step, Index n_step, Index first, Index last, float* panels);

// The right factor (K, N or more) of `gemm_packed`: its panels, or, where a BLAS multiplies, the matrix where it lies.
struct Right {
  const float* p;
  Index k_step = 0, n_step = 0;  // of the matrix
  bool vnni = false;             // `pack_vnni` packed it
};

// Whether the build has a BLAS and this system has its `cblas_sgemm`, which is bound weakly. A Mac's is Accelerate's,
// which alone reaches the matrix units of its processors: 0.7 to 2.1 TFLOP/s on an M1 Pro against 0.1 by NEON on a core.
// Elsewhere the CMake option MLXHOG_CBLAS names a library, so that the same path is tested without a Mac.
bool has_blas();

// As `gemm`, from what `packed` returned; by the system's BLAS where there is one. If B is VNNI-packed A is rounded to
// bfloat16, too, and the sums are float32, rounded to it in C if `rounds`.
void gemm_packed(Index M, Index N, Index K, const float* A, Index am, Index ak, const Right& B, float* C, Index ldc,
                 bool accumulate, bool rounds = false);

// Rounds floats to the nearest bfloat16, or to the even one; NaN stays NaN.
void round_to_bfloat16(Index count, float* x);

// B[k, n] = from[k * k_step + n * n_step] as a right factor, in `panels` or where it lies; it must stay as it is there.
Right packed(Index K, Index N, const float* from, Index k_step, Index n_step, float* panels);

// T[c, r] = W[r, c] for W (rows, cols) with row length ld; T is (cols, rows), packed or with row length T_ld.
void transpose(const float* W, Index ld, Index rows, Index cols, float* T, Index T_ld);
inline void transpose(const float* W, Index ld, Index rows, Index cols, float* T) {
  transpose(W, ld, rows, cols, T, rows);
}

// Which kernel `gemm` runs on this processor: "avx512", "avx2", "neon" or "portable". It has its own for small products
// with a BLAS, too.
const char* gemm_kernel();

// Which one multiplies pairs: "amx" or "avx512bf16", or one of these, which then takes longer than with floats.
const char* bfloat16_kernel();

}  // namespace mlxhog
