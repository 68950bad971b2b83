#include "gemm.h"

#include <algorithm>

#include "blas.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace mlxhog {
namespace {

// One tile of C stays in registers while k runs; k is cut so that the rows of B it needs stay in cache.
constexpr Index kDepth = 256;

// The next 32 columns of B begin `panel` floats on. Passed by reference: a copy would wait for the stores that filled
// it, a tenth of the time of small products.
struct Tile {
  const float *a, *b;
  float* c;
  Index am, ak, bk, panel, ldc, depth, cols;
  bool accumulate;
};

// Moves the tile along N columns.
using RowsKernel = void (*)(Tile&, Index, Index);

struct Kernel {
  const char* name;
  RowsKernel rows;
  Index height;
};

#if defined(__aarch64__)
// 8 rows x 2 vectors: 16 sums, two vectors of B and the elements of A fit 32 registers; up to 4 rows are 4 vectors wide.
// No loop over the sums has a bound of run time, for which they would have to be in memory.
constexpr int kHeight = 8;
constexpr Index kVector = 4;

// The first `count` floats, 1 to 3; the others are zero.
MLXHOG_INLINE float32x4_t load_some(const float* from, Index count) {
  float32x4_t some = vsetq_lane_f32(from[0], vdupq_n_f32(0), 0);
  if (count > 1) some = vsetq_lane_f32(from[1], some, 1);
  if (count > 2) some = vsetq_lane_f32(from[2], some, 2);
  return some;
}

MLXHOG_INLINE void store_some(float* to, float32x4_t some, Index count) {
  to[0] = vgetq_lane_f32(some, 0);
  if (count > 1) to[1] = vgetq_lane_f32(some, 1);
  if (count > 2) to[2] = vgetq_lane_f32(some, 2);
}

// `Vectors` whole vectors of columns, or the t.cols first columns of one.
template <int Rows, int Vectors, bool Whole = true>
MLXHOG_INLINE void neon_tile(const Tile& t) {
  const auto load = [&](const float* from) MLXHOG_ALWAYS { return Whole ? vld1q_f32(from) : load_some(from, t.cols); };
  float32x4_t sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      sums[i][v] = t.accumulate ? load(t.c + i * t.ldc + kVector * v) : vdupq_n_f32(0);
  const float *a = t.a, *b = t.b;
  for (Index k = 0; k < t.depth; ++k, a += t.ak, b += t.bk) {
    float32x4_t row[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) row[v] = load(b + kVector * v);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[i][v] = vfmaq_n_f32(sums[i][v], row[v], a[i * t.am]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      float* c = t.c + i * t.ldc + kVector * v;
      if (Whole) vst1q_f32(c, sums[i][v]);
      else store_some(c, sums[i][v], t.cols);
    }
}

template <int Rows>
void neon_rows_of(Tile& t, Index N) {
  constexpr int kVectors = Rows > 4 ? 2 : 4;
  const float* b = t.b;
  float* c = t.c;
  for (Index n = 0; n < N; n += t.cols) {
    t.b = b + n / kPanel * t.panel + n % kPanel;
    t.c = c + n;
    t.cols = N - n >= kVectors * kVector ? kVectors * kVector : std::min(kVector, N - n);
    if (t.cols > kVector) neon_tile<Rows, kVectors>(t);
    else if (t.cols == kVector) neon_tile<Rows, 1>(t);
    else neon_tile<Rows, 1, false>(t);
  }
}

void neon_rows(Tile& t, Index rows, Index N) {
  constexpr void (*kOf[])(Tile&, Index) = {neon_rows_of<1>, neon_rows_of<2>, neon_rows_of<3>, neon_rows_of<4>,
                                           neon_rows_of<5>, neon_rows_of<6>, neon_rows_of<7>, neon_rows_of<8>};
  kOf[rows - 1](t, N);
}

Kernel plain_kernel() { return {"neon", neon_rows, kHeight}; }
#else
// Plain form: 4 x 16 sums that the compiler keeps in vector registers.
template <int Rows>
MLXHOG_INLINE void portable_tile(const Tile& t) {
  constexpr int kCols = 16;
  float sums[Rows][kCols] = {};
  if (t.cols == kCols) {
    for (Index k = 0; k < t.depth; ++k)
      for (int i = 0; i < Rows; ++i) {
        const float a = t.a[i * t.am + k * t.ak];
#pragma omp simd
        for (int j = 0; j < kCols; ++j) sums[i][j] += a * t.b[k * t.bk + j];
      }
  } else {
    for (Index k = 0; k < t.depth; ++k)
      for (int i = 0; i < Rows; ++i)
        for (Index j = 0; j < t.cols; ++j) sums[i][j] += t.a[i * t.am + k * t.ak] * t.b[k * t.bk + j];
  }
  for (int i = 0; i < Rows; ++i)
    for (Index j = 0; j < t.cols; ++j) {
      float& c = t.c[i * t.ldc + j];
      c = t.accumulate ? c + sums[i][j] : sums[i][j];
    }
}

MLXHOG_CLONES void portable_rows(Tile& t, Index rows, Index N) {
  const float* b = t.b;
  float* c = t.c;
  for (Index n = 0; n < N; n += 16) {
    t.b = b + n / kPanel * t.panel + n % kPanel;
    t.c = c + n;
    t.cols = std::min<Index>(16, N - n);
    if (rows == 4) portable_tile<4>(t);
    else if (rows == 3) portable_tile<3>(t);
    else if (rows == 2) portable_tile<2>(t);
    else portable_tile<1>(t);
  }
}

Kernel plain_kernel() { return {"portable", portable_rows, 4}; }
#endif

#if defined(__x86_64__)
#define MLXHOG_AVX512 __attribute__((target("avx512f")))

// 14 rows x 2 vectors: 28 sums, two vectors of B, and A's elements as broadcast operands.
constexpr int kHeight = 14;
constexpr Index kAhead = 16;

template <int Rows, int Vectors>
MLXHOG_AVX512 inline void avx512_tile(const Tile& t) {
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
      sums[i][v] = t.accumulate ? _mm512_maskz_loadu_ps(mask[v], t.c + i * t.ldc + 16 * v)
                                : _mm512_setzero_ps();
  // The sums are stored at the end: fetch their lines, and rows of A and B some steps ahead, meanwhile.
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(t.c + i * t.ldc + 16 * v, 1);
  const float *a = t.a, *b = t.b;
  for (Index k = 0; k < t.depth; ++k, a += t.ak, b += t.bk) {
    __builtin_prefetch(a + kAhead * t.ak);
    __m512 row[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(b + kAhead * t.bk + 16 * v);
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) row[v] = _mm512_maskz_loadu_ps(mask[v], b + 16 * v);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const __m512 element = _mm512_set1_ps(a[i * t.am]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sums[i][v] = _mm512_fmadd_ps(element, row[v], sums[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v)
      _mm512_mask_storeu_ps(t.c + i * t.ldc + 16 * v, mask[v], sums[i][v]);
}

template <int Rows>
MLXHOG_AVX512 void avx512_rows_of(Tile& t, Index N) {
  float* c = t.c;
  for (Index n = 0; n < N; n += kPanel, t.b += t.panel) {
    t.c = c + n;
    t.cols = std::min(kPanel, N - n);
    if (t.cols > 16) avx512_tile<Rows, 2>(t);
    else avx512_tile<Rows, 1>(t);
  }
}

template <int Rows>
void avx512_rows(Tile& t, Index rows, Index N) {
  if constexpr (Rows > 0) {
    if (rows == Rows) avx512_rows_of<Rows>(t, N);
    else avx512_rows<Rows - 1>(t, rows, N);
  }
}

void avx512_any_rows(Tile& t, Index rows, Index N) { avx512_rows<kHeight>(t, rows, N); }

Kernel choose_kernel() {
  if (__builtin_cpu_supports("avx512f")) return {"avx512", avx512_any_rows, kHeight};
  return plain_kernel();
}
#else
Kernel choose_kernel() { return plain_kernel(); }
#endif

const Kernel kernel = choose_kernel();

}  // namespace

const char* gemm_kernel() { return kernel.name; }

void gemm(Index M, Index N, Index K, const float* A, Index am, Index ak, const float* B, Index bk,
          float* C, Index ldc, bool accumulate) {
  Index k = 0;
  do {
    const Index depth = std::min(kDepth, K - k);
    for (Index m = 0; m < M; m += kernel.height) {
      Tile tile{A + m * am + k * ak, B + k * bk, C + m * ldc, am, ak, bk, kPanel, ldc, depth, 0,
                accumulate || k > 0};
      kernel.rows(tile, std::min(kernel.height, M - m), N);
    }
    k += depth;
  } while (k < K);
}

void gemm_packed(Index M, Index N, Index K, const float* A, Index am, Index ak, const Right& B, float* C, Index ldc,
                 bool accumulate) {
  if (has_blas()) return blas_gemm(M, N, K, A, am, ak, B.p, B.k_step, B.n_step, C, ldc, accumulate);
  const float* panels = B.p;
  // Blocks of C, and the parts of A and B behind them, that fit a cache of 1 MiB together; equal parts of K.
  constexpr Index kRows = 448, kCols = 512, kMost = 512;  // whole tiles of every kernel
  const Index parts = std::max<Index>(1, (K + kMost - 1) / kMost), part = (K + parts - 1) / parts;
  for (Index m0 = 0; m0 < M; m0 += kRows)
    for (Index n0 = 0; n0 < N; n0 += kCols) {
      const Index rows = std::min(kRows, M - m0), cols = std::min(kCols, N - n0);
      Index k = 0;
      do {
        const Index depth = std::min(part, K - k);
        const auto tiles = [&](Index m, Index n, Index width) {
          Tile tile{A + (m0 + m) * am + k * ak, panels + (n0 + n) * K + k * kPanel, C + (m0 + m) * ldc + n0 + n, am, ak,
                    kPanel, kPanel * K, ldc, depth, 0, accumulate || k > 0};
          kernel.rows(tile, std::min(kernel.height, rows - m), width);
        };
        if (am == 1) {  // a tile's elements of A lie in `depth` lines: better keep the panel close
          for (Index n = 0; n < cols; n += kPanel)
            for (Index m = 0; m < rows; m += kernel.height) tiles(m, n, std::min(kPanel, cols - n));
        } else {
          for (Index m = 0; m < rows; m += kernel.height) tiles(m, 0, cols);
        }
        k += part;
      } while (k < K);
    }
}

MLXHOG_CLONES void pack(Index K, Index N, const float* from, Index k_step, Index n_step, Index first, Index last,
                        float* panels) {
  constexpr Index kBlock = 16;  // one cache line of each column
  for (Index panel = first; panel < last; ++panel) {
    const Index n0 = panel * kPanel, cols = std::min(kPanel, N - n0);
    const float* columns = from + n0 * n_step;
    float* to = panels + n0 * K;
    if (cols < kPanel) std::fill(to, to + K * kPanel, 0.0f);
    if (n_step == 1) {
      for (Index k = 0; k < K; ++k) std::copy(columns + k * k_step, columns + k * k_step + cols, to + k * kPanel);
      continue;
    }
    for (Index k0 = 0; k0 < K; k0 += kBlock) {
      const Index depth = std::min(kBlock, K - k0);
      if (cols == kPanel && depth == kBlock) {
        for (Index k = k0; k < k0 + kBlock; ++k) {
#pragma omp simd
          for (Index n = 0; n < kPanel; ++n) to[k * kPanel + n] = columns[n * n_step + k];
        }
      } else {
        for (Index k = k0; k < k0 + depth; ++k)
          for (Index n = 0; n < cols; ++n) to[k * kPanel + n] = columns[n * n_step + k * k_step];
      }
    }
  }
}

Right packed(Index K, Index N, const float* from, Index k_step, Index n_step, float* panels) {
  if (has_blas()) return {from, k_step, n_step};
  pack(K, N, from, k_step, n_step, 0, (N + kPanel - 1) / kPanel, panels);
  return {panels, 0, 0};
}

MLXHOG_CLONES void transpose(const float* W, Index ld, Index rows, Index cols, float* T) {
  constexpr Index kBlock = 16;  // one cache line of each row
  for (Index r0 = 0; r0 < rows; r0 += kBlock)
    for (Index c0 = 0; c0 < cols; c0 += kBlock) {
      const float* from = W + r0 * ld + c0;
      float* to = T + c0 * rows + r0;
      if (r0 + kBlock <= rows && c0 + kBlock <= cols) {
        for (Index c = 0; c < kBlock; ++c) {
#pragma omp simd
          for (Index r = 0; r < kBlock; ++r) to[c * rows + r] = from[r * ld + c];
        }
      } else {
        for (Index c = 0; c < std::min(kBlock, cols - c0); ++c)
          for (Index r = 0; r < std::min(kBlock, rows - r0); ++r) to[c * rows + r] = from[r * ld + c];
      }
    }
}

}  // namespace mlxhog
