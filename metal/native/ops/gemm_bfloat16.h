// Matrix product with factors in bfloat16 and sums in float32, for uses that tolerate factors of 8 bits.
//
// A word of 32 bits holds two neighbours along K, the first in its low half; an odd last one stands beside a zero. A
// word is passed as a float and never computed with as one, so that `pack` moves words, too.
#pragma once

#include "simd.h"

namespace mlxhog {

inline Index words(Index K) { return (K + 1) / 2; }

// to[r, k] = (from[r, 2k], from[r, 2k + 1]) for rows of K floats that lie `ld` apart: the left factor, packed.
void pair_columns(Index rows, Index K, const float* from, Index ld, float* to);

// Word (from[2k, n], from[2k + 1, n]) of from (K, N), with row length ld, goes to
// to[n / 32 * panel + k * row + n % 32].
// With row 32 and panel 32 words(K) these are the panels that `gemm_bfloat16` reads; columns are filled up with zeros.
// With row N and panel 32 it is a plain matrix (words(K), N), of which nothing is filled up.
void pair_rows(Index K, Index N, const float* from, Index ld, float* to, Index row, Index panel);

// C[m, n] = sum_k A[m * am + k * ak] . panels of words, K words long; C row-major with row length ldc. One thread.
// Factors round to nearest even and below 1e-38 to zero; the order of the sums depends on the processor.
void gemm_bfloat16(Index M, Index N, Index K, const float* A, Index am, Index ak, const float* panels, float* C,
                   Index ldc);

// Whether this processor multiplies bfloat16 faster than float32.
bool bfloat16_products();

}  // namespace mlxhog
