#include "blas.h"

#include <algorithm>

// Declared here: Accelerate's header is not on other systems, and CBLAS has had this interface since 1999. Enumerations
// are passed as int.
using Sgemm = void(int order, int a_form, int b_form, int M, int N, int K, float alpha, const float* A, int lda,
                   const float* B, int ldb, float beta, float* C, int ldc);

#if defined(__APPLE__) || defined(MLXHOG_CBLAS)
extern "C" __attribute__((weak)) Sgemm cblas_sgemm;
#endif

namespace mlxhog {
namespace {

#if defined(__APPLE__) || defined(MLXHOG_CBLAS)
Sgemm* const sgemm = &cblas_sgemm;
#else
constexpr Sgemm* sgemm = nullptr;
#endif

constexpr int kRowMajor = 101, kPlain = 111, kTransposed = 112;

// A factor as CBLAS names it. A step of 1 along rows is a matrix whose transpose is row-major.
struct Form {
  int form, ld;
};

Form form_of(Index rows, Index cols, Index row_step, Index col_step) {
  if (col_step == 1) return {kPlain, static_cast<int>(std::max({row_step, cols, Index{1}}))};
  return {kTransposed, static_cast<int>(std::max({col_step, rows, Index{1}}))};
}

}  // namespace

bool has_blas() { return sgemm != nullptr; }

void blas_gemm(Index M, Index N, Index K, const float* A, Index am, Index ak, const float* B, Index bk, Index bn,
               float* C, Index ldc, bool accumulate) {
  const Form a = form_of(M, K, am, ak), b = form_of(K, N, bk, bn);
  sgemm(kRowMajor, a.form, b.form, static_cast<int>(M), static_cast<int>(N), static_cast<int>(K), 1.0f, A, a.ld, B,
        b.ld, accumulate ? 1.0f : 0.0f, C, static_cast<int>(ldc));
}

}  // namespace mlxhog
