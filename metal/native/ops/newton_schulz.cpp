#include "newton_schulz.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "gemm.h"
#include "rows.h"

namespace mlxhog {
namespace {

constexpr double kMinNorm = 1e-30;
constexpr double kRoom = 1.01;  // singular values stay below 1 after rounding: beyond it the first step grows fast

// A left factor: element (m, k) at p[m * am + k * ak].
struct Left {
  const float* p;
  Index am, ak;
};

Left left(const float* from, Index ld) { return {from, ld, 1}; }
Left left_transposed(const float* from, Index ld) { return {from, 1, ld}; }
// Right factors are packed unless a BLAS reads them where they are.
Right right(Index K, Index N, const float* from, Index ld, float* panels) { return packed(K, N, from, ld, 1, panels); }
Right right_transposed(Index K, Index N, const Left& of, float* panels) {
  return packed(K, N, of.p, 1, of.am, panels);
}
void multiply(Index M, Index N, Index K, const Left& a, Index first, const Right& b, float* C, Index ldc) {
  gemm_packed(M, N, K, a.p + first * a.am, a.am, a.ak, b, C, ldc, false);
}

// Rows of a symmetric product at once. A BLAS wants large blocks; ours few columns beyond the diagonal, as long as the
// panels stay in a near cache, else whole tiles.
Index rows_at_once(Index n) {
  if (has_blas()) return std::max<Index>(128, n / 4);
  return n <= 256 ? 8 : n <= 512 ? 14 : 112;
}

// Memory of one thread, kept between calls.
float* scratch(Index floats) {
  thread_local Buffer memory;
  thread_local Index size = 0;
  if (floats > size) {
    memory.reset();
    size = 0;  // where there is not that much memory, too
    memory = uninitialized(floats);
    size = floats;
  }
  return memory.get();
}

constexpr Index kBlock = 16;  // one cache line of each row

// The upper triangle of C (n, n) from the lower one, by blocks.
void mirror(Index n, float* C, Index ld) {
  for (Index r0 = 0; r0 < n; r0 += kBlock)
    for (Index c0 = 0; c0 <= r0; c0 += kBlock)
      for (Index r = r0; r < std::min(n, r0 + kBlock); ++r)
        for (Index c = c0; c < std::min(r, c0 + kBlock); ++c) C[c * ld + r] = C[r * ld + c];
}

// C (n, n) = A B where the product is known to be symmetric.
void symmetric_product(Index n, Index K, const Left& a, const Right& b, float* C, Index ld) {
  const Index step = rows_at_once(n);
  for (Index m = 0; m < n; m += step) {
    const Index rows = std::min(step, n - m);
    multiply(rows, m + rows, K, a, m, b, C + m * ld, ld);
  }
  mirror(n, C, ld);
}

// square = a I + b A + c square
MLXHOG_CLONES void polynomial(Index n, Index ld, const float* A, float* square, NewtonSchulzStep step) {
  for (Index r = 0; r < n; ++r) {
    const float* from = A + r * ld;
    float* to = square + r * ld;
#pragma omp simd
    for (Index c = 0; c < n; ++c) to[c] = step.b * from[c] + step.c * to[c];
    to[r] += step.a;
  }
}

MLXHOG_CLONES double sum_of_squares(Index n, const float* x) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (Index i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

void orthogonalize(Index rows, Index cols, const float* x, float* u, const NewtonSchulzStep* steps, int n_steps,
                   float scale) {
  const bool wide = rows <= cols;
  const Index n = std::min(rows, cols), longer = std::max(rows, cols);
  const Index ld = (n + 15) / 16 * 16 + 16;  // rows of a power of two would share few sets of a cache
  const Index matrix = n * ld, panels = packed_floats(n, n);
  const Index x_panels = std::max(packed_floats(rows, cols), packed_floats(cols, rows));
  constexpr Index kLineFloats = kLine / sizeof(float), kTaken = 7;
  float* at = scratch(4 * matrix + 2 * panels + x_panels + kTaken * kLineFloats);
  const auto take = [&](Index floats) {
    return std::exchange(at, at + (floats + kLineFloats - 1) / kLineFloats * kLineFloats);
  };
  float *A = take(matrix), *P = take(matrix), *T = take(matrix), *Q = take(matrix);
  float *right_a = take(panels), *right_p = take(panels), *right_x = take(x_panels);

  if (wide) {
    const Left a = left(x, cols);
    symmetric_product(n, longer, a, right_transposed(cols, rows, a, right_x), A, ld);
  } else {
    symmetric_product(n, longer, left_transposed(x, cols), right(rows, cols, x, cols, right_x), A, ld);
  }
  // P is the step as a polynomial of A, Q the product of all so far. The next A is A P^2.
  for (int k = 0; k < n_steps; ++k) {
    const bool last = k + 1 == n_steps;
    const Left a = left(A, ld);
    symmetric_product(n, n, a, right(n, n, A, ld, right_a), P, ld);
    polynomial(n, ld, A, P, steps[k]);
    Right p{};
    if (!last) {
      p = right(n, n, P, ld, right_p);
      symmetric_product(n, n, a, p, T, ld);
    }
    if (k == 0) {
      std::swap(P, Q);
    } else {
      symmetric_product(n, n, left(P, ld), right(n, n, Q, ld, right_a), A, ld);
      std::swap(A, Q);
    }
    if (!last) symmetric_product(n, n, left(T, ld), p, A, ld);
  }
  for (Index r = 0; r < n; ++r) mlxhog::scale(n, scale, Q + r * ld);
  if (wide) multiply(rows, cols, rows, left(Q, ld), 0, right(rows, cols, x, cols, right_x), u, cols);
  else multiply(rows, cols, cols, left(x, cols), 0, right(cols, cols, Q, ld, right_a), u, cols);
}

}  // namespace

void newton_schulz(Index rows, Index cols, float* x, float* u, const NewtonSchulzStep* steps, int n_steps,
                   float scale) {
  const double norm = std::sqrt(sum_of_squares(rows * cols, x));
  if (norm < kMinNorm) {
    std::fill_n(u, rows * cols, 0.0f);
    return;
  }
  mlxhog::scale(rows * cols, static_cast<float>(1.0 / (kRoom * norm)), x);
  orthogonalize(rows, cols, x, u, steps, n_steps, scale);
}

}  // namespace mlxhog
