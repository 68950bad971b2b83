#include "gemm_bfloat16.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mlxhog {
namespace {

// The bits of x rounded to bfloat16, in the high half.
MLXHOG_INLINE std::uint32_t rounded(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  return (bits + (((bits >> 16) & 1u) + 0x7fffu)) & 0xffff0000u;
}
MLXHOG_INLINE float pair(float low, float high) { return std::bit_cast<float>(rounded(low) >> 16 | rounded(high)); }
MLXHOG_INLINE float low(float word) { return std::bit_cast<float>(std::bit_cast<std::uint32_t>(word) << 16); }
MLXHOG_INLINE float high(float word) {
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(word) & 0xffff0000u);
}

struct Tile {
  const float *a, *b;
  float* c;
  Index am, ak, ldc, depth, cols;
  bool accumulate;
};

MLXHOG_CLONES void portable_tile(const Tile& t, Index rows) {
  for (Index i = 0; i < rows; ++i) {
    float sums[kPanel] = {};
    for (Index k = 0; k < t.depth; ++k) {
      const float word = t.a[i * t.am + k * t.ak], first = low(word), second = high(word);
#pragma omp simd
      for (Index j = 0; j < kPanel; ++j)
        sums[j] += first * low(t.b[k * kPanel + j]) + second * high(t.b[k * kPanel + j]);
    }
    float* c = t.c + i * t.ldc;
    for (Index j = 0; j < t.cols; ++j) c[j] = t.accumulate ? c[j] + sums[j] : sums[j];
  }
}

using TileKernel = void (*)(const Tile&, Index);

struct Kernel {
  TileKernel tile;
  Index height;
  bool fast;
};

#if defined(__x86_64__)
#define MLXHOG_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

constexpr int kHeight = 14;  // rows of a tile, as in gemm.cpp
constexpr Index kAhead = 16;

template <int Rows, int Vectors>
MLXHOG_AVX512_BF16 inline void avx512_tile(const Tile& t) {
  __mmask16 mask[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    const Index left = std::clamp<Index>(t.cols - 16 * v, 0, 16);
    mask[v] = static_cast<__mmask16>((1u << left) - 1);
  }
  __m512 sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v)
      sums[i][v] = t.accumulate ? _mm512_maskz_loadu_ps(mask[v], t.c + i * t.ldc + 16 * v) : _mm512_setzero_ps();
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(t.c + i * t.ldc + 16 * v, 1);
  const float *a = t.a, *b = t.b;
  for (Index k = 0; k < t.depth; ++k, a += t.ak, b += kPanel) {
    __builtin_prefetch(a + kAhead * t.ak);
    __m512bh row[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(b + kAhead * kPanel + 16 * v);
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) row[v] = (__m512bh)_mm512_loadu_ps(b + 16 * v);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const __m512bh element = (__m512bh)_mm512_set1_ps(a[i * t.am]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sums[i][v] = _mm512_dpbf16_ps(sums[i][v], element, row[v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) _mm512_mask_storeu_ps(t.c + i * t.ldc + 16 * v, mask[v], sums[i][v]);
}

template <int Rows>
MLXHOG_AVX512_BF16 void avx512_rows(const Tile& t, Index rows) {
  if constexpr (Rows > 0) {
    if (rows < Rows) return avx512_rows<Rows - 1>(t, rows);
    if (t.cols > 16) avx512_tile<Rows, 2>(t);
    else avx512_tile<Rows, 1>(t);
  }
}

Kernel choose_kernel() {
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl"))
    return {avx512_rows<kHeight>, kHeight, true};
  return {portable_tile, 4, false};
}
#else
Kernel choose_kernel() { return {portable_tile, 4, false}; }
#endif

const Kernel kernel = choose_kernel();

}  // namespace

bool bfloat16_products() { return kernel.fast; }

MLXHOG_CLONES void pair_columns(Index rows, Index K, const float* from, Index ld, float* to) {
  for (Index r = 0; r < rows; ++r, from += ld, to += words(K)) {
#pragma omp simd
    for (Index k = 0; k < K / 2; ++k) to[k] = pair(from[2 * k], from[2 * k + 1]);
    if (K % 2) to[K / 2] = pair(from[K - 1], 0.0f);
  }
}

MLXHOG_CLONES void pair_rows(Index K, Index N, const float* from, Index ld, float* to, Index row, Index panel) {
  for (Index k = 0; k < K; k += 2, from += 2 * ld)
    for (Index n0 = 0; n0 < N; n0 += kPanel) {
      float* line = to + n0 / kPanel * panel + k / 2 * row;
      const float *first = from + n0, *second = first + ld;
      const Index cols = std::min(kPanel, N - n0);
      if (k + 1 < K) {
#pragma omp simd
        for (Index n = 0; n < cols; ++n) line[n] = pair(first[n], second[n]);
      } else {
        for (Index n = 0; n < cols; ++n) line[n] = pair(first[n], 0.0f);
      }
      if (row == kPanel) std::fill(line + cols, line + kPanel, 0.0f);
    }
}

void gemm_bfloat16(Index M, Index N, Index K, const float* A, Index am, Index ak, const float* panels, float* C,
                   Index ldc) {
  constexpr Index kMost = 512;  // words of K at once, so that a panel stays in the first cache
  Index k = 0;
  do {
    const Index depth = std::min(kMost, K - k);
    for (Index m = 0; m < M; m += kernel.height)
      for (Index n = 0; n < N; n += kPanel)
        kernel.tile({A + m * am + k * ak, panels + n * K + k * kPanel, C + m * ldc + n, am, ak, ldc, depth,
                     std::min(kPanel, N - n), k > 0},
                    std::min(kernel.height, M - m));
    k += depth;
  } while (k < K);
}

}  // namespace mlxhog
