#include "gemm.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "memory.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Declared here: Accelerate's header is not on other systems, and CBLAS has had this interface since 1999. Enumerations
// are passed as int.
using Sgemm = void(int order, int a_form, int b_form, int M, int N, int K, float alpha, const float* A, int lda,
                   const float* B, int ldb, float beta, float* C, int ldc);

#if defined(__APPLE__) || defined(MLXHOG_CBLAS)
extern "C" __attribute__((weak)) Sgemm cblas_sgemm;
#endif

namespace mlxhog {
namespace {

// One tile of C stays in registers while k runs; k is cut so that the rows of B it needs stay in cache.
constexpr Index kDepth = 256;
constexpr std::uint32_t kHigh = 0xffff0000;  // the bits of a bfloat16
constexpr Index kAhead = 16;  // steps of k whose elements are fetched ahead

// A row of tiles; the next 32 columns of B begin `panel` floats on. In a product of bfloat16 a float of A or B holds
// two of them, neighbors along k.
struct Tiles {
  const float *a, *b;
  float* c;
  Index am, ak, bk, panel, ldc, depth;
  bool accumulate;
};

// A unit stride of A that is known at compile time lets loads use immediate displacements: address arithmetic takes
// ports from the sums on Intel's processors.
enum class Form { kAnyA, kRowsOfA, kColumnsOfA };

template <int Lanes>
struct Vector {
  // No `using`: GCC 12 drops its attribute, without a warning.
  typedef float Type __attribute__((vector_size(Lanes * sizeof(float))));
  static_assert(sizeof(Type) == Lanes * sizeof(float));
};

// One step of k of the micro-kernel, by element type.
struct Floats {
  template <class V>
  MLXHOG_INLINE static void add(V& sum, float a, const V& b) {
    sum += a * b;
  }
};

struct Vnni {
  template <class V>
  MLXHOG_INLINE static void add(V& sum, float a, const V& b) {
    typedef std::uint32_t Words __attribute__((vector_size(sizeof(V))));
    const auto of_a = std::bit_cast<std::uint32_t>(a);
    const auto of_b = std::bit_cast<Words>(b);
    sum += std::bit_cast<float>(of_a << 16) * std::bit_cast<V>(of_b << 16);
    sum += std::bit_cast<float>(of_a & kHigh) * std::bit_cast<V>(of_b & kHigh);
  }
};

// C of `Rows` rows and `Vectors` vectors at `c`. No loop over the sums has a bound of run time, for which they would
// have to be in memory.
template <class Held, int Lanes, int Rows, int Vectors, Form form>
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
      for (int v = 0; v < Vectors; ++v) Held::add(sums[i][v], a[i * am], row[v]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store(sums[i][v], c + i * t.ldc + Lanes * v);
}

// Columns [n, N), by tiles that become narrower as fewer columns are left.
template <class Held, int Lanes, int Rows, int Vectors, Form form>
MLXHOG_INLINE void columns(const Tiles& t, Index n, Index N) {
  for (; n + Lanes * Vectors <= N; n += Lanes * Vectors)
    tile<Held, Lanes, Rows, Vectors, form>(t, t.b + n / kPanel * t.panel + n % kPanel, t.c + n);
  if constexpr (Vectors > 1) columns<Held, Lanes, Rows, Vectors / 2, Form::kAnyA>(t, n, N);
  else if constexpr (Lanes > 1) columns<Held, Lanes / 2, Rows, 1, Form::kAnyA>(t, n, N);
}

// Vectors of a tile: up to half the rows have four, if a panel has as many, so that sums do not wait for each other.
constexpr int vectors(int rows, int height, int lanes) { return 2 * rows <= height && 4 * lanes <= kPanel ? 4 : 2; }

// An instruction set: its registers hold the sums of its highest tile, two vectors of B and an element of A.
#define MLXHOG_INSTRUCTIONS(NAME, HEIGHT, LANES, TARGET)                       \
  template <class Held>                                                        \
  struct NAME {                                                                \
    static constexpr int kHeight = HEIGHT;                                     \
    template <int Rows, Form form>                                             \
    TARGET static void rows(const Tiles& t, Index N) {                         \
      columns<Held, LANES, Rows, vectors(Rows, HEIGHT, LANES), form>(t, 0, N); \
    }                                                                          \
  };
MLXHOG_INSTRUCTIONS(Neon, 8, 4, )
MLXHOG_INSTRUCTIONS(Portable, 6, 4, )

#if defined(__x86_64__)
MLXHOG_INSTRUCTIONS(Avx512, 14, 16, __attribute__((target("avx512f"))))
MLXHOG_INSTRUCTIONS(Avx2, 6, 8, __attribute__((target("avx2,fma"))))

// VNNI by AVX512_BF16. In assembly, because GCC and clang take the instruction's function from no inlined template.
struct Dots {
  template <class V>
  MLXHOG_INLINE static void add(V& sum, float a, const V& b) {
    if constexpr (sizeof(V) < 16) return Vnni::add(sum, a, b);
    typedef std::uint32_t Words __attribute__((vector_size(sizeof(V))));
    const Words all = Words{} + std::bit_cast<std::uint32_t>(a);
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(all));
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

#if defined(__x86_64__) && defined(__linux__)
#define MLXHOG_AMX __attribute__((target("amx-tile,amx-bf16")))

// The form of AMX's tiles, as its instruction reads it: 0 to 3 are sums, 4 and 5 rows of A, 6 and 7 columns of B.
struct alignas(64) TileForms {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];

  // Heights and widths of two by two tiles of C, up to 16; a tile of height or width 0 stays unused.
  TileForms(Index high, Index low, Index left, Index right) : row_bytes{}, rows{} {
    const auto set = [this](int tile, Index height, Index width) {
      rows[tile] = static_cast<std::uint8_t>(height && width ? height : 1);
      row_bytes[tile] = static_cast<std::uint16_t>(height && width ? 4 * width : 4);
    };
    set(0, high, left), set(1, high, right), set(2, low, left), set(3, low, right);
    set(4, high, 16), set(5, low, 16), set(6, 16, left), set(7, 16, right);
  }
};

struct Amx {
  static constexpr int kHeight = 32;

  static bool works() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kBfloat16 = 1 << 22, kTiles = 1 << 24, kAsk = 0x1023, kTileData = 18;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & kBfloat16 && d & kTiles &&
           syscall(SYS_arch_prctl, kAsk, kTileData) == 0;  // Linux gives a process tiles when it asks
  }

  // `rows` rows of C; the depth is a multiple of 16, and rows of A have a step of 1.
  MLXHOG_AMX static void rows(Tiles& t, Index rows, Index N) {
    for (Index n = 0; n < N;) {
      const Index cols = N - n < kPanel ? N - n : kPanel, end = cols < kPanel ? N : N / kPanel * kPanel;
      const Index low = rows > 16 ? rows - 16 : 0, right = cols > 16 ? cols - 16 : 0;
      const TileForms forms(rows - low, low, cols - right, right);
      _tile_loadconfig(&forms);
      for (; n < end; n += kPanel) tiles(t, t.b + n / kPanel * t.panel, t.c + n, low > 0, right > 0);
    }
    _tile_release();
  }

 private:
  MLXHOG_AMX static void tiles(const Tiles& t, const float* b, float* c, bool low, bool right) {
    const Index a_step = 4 * t.am, b_step = 4 * t.bk, c_step = 4 * t.ldc;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (t.accumulate) {
      _tile_loadd(0, c, c_step);
      if (right) _tile_loadd(1, c + 16, c_step);
      if (low) _tile_loadd(2, c + 16 * t.ldc, c_step);
      if (low && right) _tile_loadd(3, c + 16 * t.ldc + 16, c_step);
    }
    for (Index k = 0; k < t.depth; k += 16, b += 16 * t.bk) {
      _tile_loadd(4, t.a + k, a_step);
      _tile_loadd(6, b, b_step);
      _tile_dpbf16ps(0, 4, 6);
      if (right) {
        _tile_loadd(7, b + 16, b_step);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (!low) continue;
      _tile_loadd(5, t.a + 16 * t.am + k, a_step);
      _tile_dpbf16ps(2, 5, 6);
      if (right) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_step);
    if (right) _tile_stored(1, c + 16, c_step);
    if (low) _tile_stored(2, c + 16 * t.ldc, c_step);
    if (low && right) _tile_stored(3, c + 16 * t.ldc + 16, c_step);
  }
};
#endif

template <class Held>
Kernel choose_kernel() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return kernel_of<Avx512<Held>>("avx512");
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kernel_of<Avx2<Held>>("avx2");
#endif
#if defined(__aarch64__)
  return kernel_of<Neon<Held>>("neon");
#else
  return kernel_of<Portable<Held>>("portable");
#endif
}

// AVX512_BF16 takes AMD's processors half as long as the same product of floats, Intel's twice as long.
Kernel choose_pair_kernel() {
#if defined(__x86_64__) && defined(__linux__)
  if (Amx::works()) return {"amx", Amx::kHeight, Amx::rows};
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd")) return kernel_of<Avx512<Dots>>("avx512bf16");
#endif
  return choose_kernel<Vnni>();
}

// x rounded to bfloat16, in the high half.
MLXHOG_INLINE std::uint32_t rounded(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
}

const Kernel kernel = choose_kernel<Floats>(), vnni_kernel = choose_pair_kernel();

}  // namespace

const char* gemm_kernel() { return kernel.name; }
const char* bfloat16_kernel() { return vnni_kernel.name; }

MLXHOG_CLONES void round_to_bfloat16(Index count, float* x) {
#pragma omp simd
  for (Index i = 0; i < count; ++i) x[i] = std::bit_cast<float>(rounded(x[i]) & kHigh);
}

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

namespace {

// The product by panels, with K steps of k, a multiple of `unit`.
void by_panels(const Kernel& own, Index M, Index N, Index K, Index unit, const float* A, Index am, Index ak,
               const float* panels, float* C, Index ldc, bool accumulate, bool rounds = false) {
  // Blocks of C, and the parts of A and B behind them, that fit a cache of 1 MiB together; about equal parts of K.
  constexpr Index kCols = 512, kMaxDepth = 512;
  const Index block = 336 / own.height * own.height;
  const Index parts = std::max<Index>(1, (K + kMaxDepth - 1) / kMaxDepth);
  const Index part = ((K + parts - 1) / parts + unit - 1) / unit * unit;
  for (Index m0 = 0; m0 < M; m0 += block)
    for (Index n0 = 0; n0 < N; n0 += kCols) {
      const Index rows = std::min(block, M - m0), cols = std::min(kCols, N - n0);
      Index k = 0;
      do {
        const Index depth = std::min(part, K - k);
        const auto tiles = [&](Index m, Index n, Index width) {
          Tiles row{A + (m0 + m) * am + k * ak, panels + (n0 + n) * K + k * kPanel, C + (m0 + m) * ldc + n0 + n, am, ak,
                    kPanel, kPanel * K, ldc, depth, accumulate || k > 0};
          own.rows(row, std::min(own.height, rows - m), width);
        };
        if (am == 1) {  // a tile's elements of A lie in `depth` lines: better keep the panel close
          for (Index n = 0; n < cols; n += kPanel)
            for (Index m = 0; m < rows; m += own.height) tiles(m, n, std::min(kPanel, cols - n));
        } else {
          for (Index m = 0; m < rows; m += own.height) tiles(m, 0, cols);
        }
        k += part;
      } while (k < K);
      for (Index m = m0; rounds && m < m0 + rows; ++m) round_to_bfloat16(cols, C + m * ldc + n0);
    }
}

MLXHOG_INLINE float pair(float low, float high) {
  return std::bit_cast<float>(rounded(low) >> 16 | (rounded(high) & kHigh));
}

// Rows of pairs, `to` (pairs, N) with row length `to_ld`, from rows of floats (K, N); beyond K zeros.
MLXHOG_CLONES void vnni_rows(Index K, Index N, const float* from, Index ld, float* to, Index to_ld, Index pairs) {
  for (Index k = 0; k < pairs; ++k, to += to_ld) {
    const float *first = from + 2 * k * ld, *second = first + ld;
    if (2 * k + 1 < K) {
#pragma omp simd
      for (Index n = 0; n < N; ++n) to[n] = pair(first[n], second[n]);
    } else {
      for (Index n = 0; n < N; ++n) to[n] = pair(2 * k < K ? first[n] : 0.0f, 0.0f);
    }
  }
}

// One row along k.
MLXHOG_CLONES void vnni_row(Index K, const float* from, float* to, Index pairs) {
#pragma omp simd
  for (Index k = 0; k < K / 2; ++k) to[k] = pair(from[2 * k], from[2 * k + 1]);
  if (K % 2) to[K / 2] = pair(from[K - 1], 0.0f);
  std::fill(to + (K + 1) / 2, to + pairs, 0.0f);
}

// Steps of k in pairs: whole tiles of AMX.
constexpr Index kUnit = 16;
Index vnni_steps(Index K) { return (K + 2 * kUnit - 1) / (2 * kUnit) * kUnit; }

void vnni_panels(Index M, Index N, Index K, const float* A, Index am, Index ak, const float* panels, float* C,
                 Index ldc, bool accumulate, bool rounds) {
  const Index pairs = vnni_steps(K), ld = pairs + kUnit;  // rows of a power of two would share few sets of a cache
  const Buffer rows = uninitialized(M * ld);
  if (ak == 1) {
    for (Index m = 0; m < M; ++m) vnni_row(K, A + m * am, &rows[m * ld], pairs);
  } else {
    const Buffer columns = uninitialized(pairs * M);
    vnni_rows(K, M, A, ak, columns.get(), M, pairs);
    transpose(columns.get(), M, pairs, M, rows.get(), ld);
  }
  by_panels(vnni_kernel, M, N, pairs, kUnit, rows.get(), ld, 1, panels, C, ldc, accumulate, rounds);
}

// -- the system's BLAS

#if defined(__APPLE__) || defined(MLXHOG_CBLAS)
Sgemm* const sgemm = &cblas_sgemm;
#else
constexpr Sgemm* sgemm = nullptr;
#endif

constexpr int kRowMajor = 101, kPlain = 111, kTransposed = 112;

// A factor as CBLAS names it. A step of 1 along rows is a matrix whose transpose is row-major.
struct Factor {
  int form, ld;
};

Factor factor_of(Index rows, Index cols, Index row_step, Index col_step) {
  if (col_step == 1) return {kPlain, static_cast<int>(std::max({row_step, cols, Index{1}}))};
  return {kTransposed, static_cast<int>(std::max({col_step, rows, Index{1}}))};
}

// C = (accumulate ? C : 0) + A B; one step of each factor is 1.
void blas_gemm(Index M, Index N, Index K, const float* A, Index am, Index ak, const float* B, Index bk, Index bn,
               float* C, Index ldc, bool accumulate) {
  const Factor a = factor_of(M, K, am, ak), b = factor_of(K, N, bk, bn);
  sgemm(kRowMajor, a.form, b.form, static_cast<int>(M), static_cast<int>(N), static_cast<int>(K), 1.0f, A, a.ld, B,
        b.ld, accumulate ? 1.0f : 0.0f, C, static_cast<int>(ldc));
}

}  // namespace

bool has_blas() { return sgemm != nullptr; }

void gemm_packed(Index M, Index N, Index K, const float* A, Index am, Index ak, const Right& B, float* C, Index ldc,
                 bool accumulate, bool rounds) {
  if (B.vnni) return vnni_panels(M, N, K, A, am, ak, B.p, C, ldc, accumulate, rounds);
  if (has_blas()) return blas_gemm(M, N, K, A, am, ak, B.p, B.k_step, B.n_step, C, ldc, accumulate);
  by_panels(kernel, M, N, K, 1, A, am, ak, B.p, C, ldc, accumulate);
}

void pack(Index K, Index N, const float* from, Index k_step, Index n_step, Index first, Index last, float* panels) {
  for (Index panel = first; panel < last; ++panel) {
    const Index n0 = panel * kPanel, cols = std::min(kPanel, N - n0);
    const float* columns = from + n0 * n_step;
    float* to = panels + n0 * K;
    if (cols < kPanel) std::fill(to, to + K * kPanel, 0.0f);
    if (n_step != 1) transpose(columns, n_step, cols, K, to, kPanel);
    else
      for (Index k = 0; k < K; ++k) std::copy_n(columns + k * k_step, cols, to + k * kPanel);
  }
}

void pack_vnni(Index K, Index N, const float* from, Index k_step, Index n_step, Index first, Index last,
                float* panels) {
  const Index pairs = vnni_steps(K);
  const Buffer columns = n_step == 1 ? nullptr : uninitialized(K * kPanel);
  for (Index panel = first; panel < last; ++panel) {
    const Index n0 = panel * kPanel, cols = std::min(kPanel, N - n0);
    const float* from_panel = from + n0 * n_step;
    float* to = panels + n0 * pairs;
    if (cols < kPanel) std::fill(to, to + pairs * kPanel, 0.0f);
    if (columns) pack(K, cols, from_panel, k_step, n_step, 0, 1, columns.get());
    vnni_rows(K, cols, columns ? columns.get() : from_panel, columns ? kPanel : k_step, to, kPanel, pairs);
  }
}

Right packed(Index K, Index N, const float* from, Index k_step, Index n_step, float* panels) {
  if (has_blas()) return {.p = from, .k_step = k_step, .n_step = n_step};
  pack(K, N, from, k_step, n_step, 0, (N + kPanel - 1) / kPanel, panels);
  return {.p = panels};
}

MLXHOG_CLONES void transpose(const float* W, Index ld, Index rows, Index cols, float* T, Index T_ld) {
  constexpr Index kBlock = 16;  // one cache line of each row
  for (Index r0 = 0; r0 < rows; r0 += kBlock)
    for (Index c0 = 0; c0 < cols; c0 += kBlock) {
      const float* from = W + r0 * ld + c0;
      float* to = T + c0 * T_ld + r0;
      if (r0 + kBlock <= rows && c0 + kBlock <= cols) {
        for (Index c = 0; c < kBlock; ++c) {
#pragma omp simd
          for (Index r = 0; r < kBlock; ++r) to[c * T_ld + r] = from[r * ld + c];
        }
      } else {
        for (Index c = 0; c < std::min(kBlock, cols - c0); ++c)
          for (Index r = 0; r < std::min(kBlock, rows - r0); ++r) to[c * T_ld + r] = from[r * ld + c];
      }
    }
}

}  // namespace mlxhog
