#include "gemm.h"

#include <algorithm>
#include <bit>

#include "blas.h"

namespace mlxhog {
namespace {

// One tile of C stays in registers while k runs; k is cut so that the rows of B it needs stay in cache.
constexpr Index kDepth = 256;
constexpr Index kAhead = 16;  // steps of k whose elements are fetched ahead

// A row of tiles; the next 32 columns of B begin `panel` floats on.
struct Tiles {
  const float *a, *b;
  float* c;
  Index am, ak, bk, panel, ldc, depth;
  bool accumulate;
};

// A step of A that is known to be 1 is a displacement of its loads: on Intel's processors the computation of addresses
// takes ports from the sums.
enum class Form { kAnyA, kRowsOfA, kColumnsOfA };

template <int Lanes>
struct Vector {
  // No `using`: GCC 12 drops its attribute, without a warning.
  typedef float Type __attribute__((vector_size(Lanes * sizeof(float))));
  static_assert(sizeof(Type) == Lanes * sizeof(float));
};

// C of `Rows` rows and `Vectors` vectors at `c`. No loop over the sums has a bound of run time, for which they would
// have to be in memory.
template <int Lanes, int Rows, int Vectors, Form form>
MLXHOG_INLINE void tile(const Tiles& t, const float* b, float* c) {
  const Index am = form == Form::kColumnsOfA ? 1 : t.am, ak = form == Form::kRowsOfA ? 1 : t.ak;
  typename Vector<Lanes>::Type sums[Rows][Vectors] = {}, row[Vectors];
  // The sums are stored at the end: fetch their lines, and rows of A and B some steps ahead, meanwhile.
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(c + i * t.ldc + Lanes * v, 1);
  if (t.accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) load(c + i * t.ldc + Lanes * v, sums[i][v]);
  }
  const float* a = t.a;
  const Index depth = t.depth, bk = t.bk;
#pragma GCC unroll 2
  for (Index k = 0; k < depth; ++k, a += ak, b += bk) {
    __builtin_prefetch(a + kAhead * ak);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      __builtin_prefetch(b + kAhead * bk + Lanes * v);
      load(b + Lanes * v, row[v]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[i][v] += a[i * am] * row[v];
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store(sums[i][v], c + i * t.ldc + Lanes * v);
}

// Columns [n, N), by tiles that become narrower as fewer columns are left.
template <int Lanes, int Rows, int Vectors, Form form>
MLXHOG_INLINE void columns(const Tiles& t, Index n, Index N) {
  for (; n + Lanes * Vectors <= N; n += Lanes * Vectors)
    tile<Lanes, Rows, Vectors, form>(t, t.b + n / kPanel * t.panel + n % kPanel, t.c + n);
  if constexpr (Vectors > 1) columns<Lanes, Rows, Vectors / 2, Form::kAnyA>(t, n, N);
  else if constexpr (Lanes > 1) columns<Lanes / 2, Rows, 1, Form::kAnyA>(t, n, N);
}

// Vectors of a tile: up to half the rows have four, if a panel has as many, so that sums do not wait for each other.
constexpr int vectors(int rows, int height, int lanes) { return 2 * rows <= height && 4 * lanes <= kPanel ? 4 : 2; }

// An instruction set: its registers hold the sums of its highest tile, two vectors of B and an element of A.
template <int Height, int Lanes>
struct Plain {
  static constexpr int kHeight = Height;
  template <int Rows, Form form>
  static void rows(const Tiles& t, Index N) {
    columns<Lanes, Rows, vectors(Rows, Height, Lanes), form>(t, 0, N);
  }
};

#if defined(__x86_64__)
struct Avx512 {
  static constexpr int kHeight = 14, kLanes = 16;
  template <int Rows, Form form>
  __attribute__((target("avx512f"))) static void rows(const Tiles& t, Index N) {
    columns<kLanes, Rows, vectors(Rows, kHeight, kLanes), form>(t, 0, N);
  }
};

struct Avx2 {
  static constexpr int kHeight = 6, kLanes = 8;
  template <int Rows, Form form>
  __attribute__((target("avx2,fma"))) static void rows(const Tiles& t, Index N) {
    columns<kLanes, Rows, vectors(Rows, kHeight, kLanes), form>(t, 0, N);
  }
};
#endif

// `rows` rows of C, by tiles that become lower as fewer rows are left; it moves t behind them.
template <class Instructions, int Rows>
void rows_of_tiles(Tiles& t, Index rows, Index N) {
  if (rows >= Rows) {
    if (t.ak == 1) Instructions::template rows<Rows, Form::kRowsOfA>(t, N);
    else if (t.am == 1) Instructions::template rows<Rows, Form::kColumnsOfA>(t, N);
    else Instructions::template rows<Rows, Form::kAnyA>(t, N);
    t.a += Rows * t.am;
    t.c += Rows * t.ldc;
    rows -= Rows;
  }
  if constexpr (Rows > 1) rows_of_tiles<Instructions, std::bit_floor(unsigned{Rows - 1})>(t, rows, N);
}

struct Kernel {
  const char* name;
  Index height;
  void (*rows)(Tiles&, Index, Index);
};

template <class Instructions>
Kernel kernel_of(const char* name) {
  return {name, Instructions::kHeight, rows_of_tiles<Instructions, Instructions::kHeight>};
}

Kernel choose_kernel() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return kernel_of<Avx512>("avx512");
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kernel_of<Avx2>("avx2");
#endif
#if defined(__aarch64__)
  return kernel_of<Plain<8, 4>>("neon");
#else
  return kernel_of<Plain<6, 4>>("portable");
#endif
}

const Kernel kernel = choose_kernel();

}  // namespace

const char* gemm_kernel() { return kernel.name; }

void gemm(Index M, Index N, Index K, const float* A, Index am, Index ak, const float* B, Index bk,
          float* C, Index ldc, bool accumulate) {
  Index k = 0;
  do {
    const Index depth = std::min(kDepth, K - k);
    for (Index m = 0; m < M; m += kernel.height) {
      Tiles tiles{A + m * am + k * ak, B + k * bk, C + m * ldc, am, ak, bk, kPanel, ldc, depth, accumulate || k > 0};
      kernel.rows(tiles, std::min(kernel.height, M - m), N);
    }
    k += depth;
  } while (k < K);
}

void gemm_packed(Index M, Index N, Index K, const float* A, Index am, Index ak, const Right& B, float* C, Index ldc,
                 bool accumulate) {
  if (has_blas()) return blas_gemm(M, N, K, A, am, ak, B.p, B.k_step, B.n_step, C, ldc, accumulate);
  const float* panels = B.p;
  // Blocks of C, and the parts of A and B behind them, that fit a cache of 1 MiB together; equal parts of K.
  constexpr Index kRows = 336, kCols = 512, kMost = 512;  // whole tiles of every kernel
  const Index parts = std::max<Index>(1, (K + kMost - 1) / kMost), part = (K + parts - 1) / parts;
  for (Index m0 = 0; m0 < M; m0 += kRows)
    for (Index n0 = 0; n0 < N; n0 += kCols) {
      const Index rows = std::min(kRows, M - m0), cols = std::min(kCols, N - n0);
      Index k = 0;
      do {
        const Index depth = std::min(part, K - k);
        const auto tiles = [&](Index m, Index n, Index width) {
          Tiles row{A + (m0 + m) * am + k * ak, panels + (n0 + n) * K + k * kPanel, C + (m0 + m) * ldc + n0 + n, am, ak,
                    kPanel, kPanel * K, ldc, depth, accumulate || k > 0};
          kernel.rows(row, std::min(kernel.height, rows - m), width);
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
