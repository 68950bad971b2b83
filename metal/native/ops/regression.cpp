// The ridge regression of every position: S_t = exp(log_decay_t) S_{t-1} + k_t k_t^T, x_t = (S_t + diag(ridge))^-1 q_t.
//
// log_decay is at most 0, ridge above 0. Conjugate gradients solve each position while its S lies in the cache: they end
// after `steps` steps, or when the rest is 1e-7 of q. Work is split over B and heads.
#include <algorithm>
#include <limits>

#include "recurrence.h"
#include "rows.h"
#include "shapes.h"

namespace mlxhog {
namespace {

struct RegressionInputs {
  const float *q, *k, *log_decay, *ridge;
  const float* state;  // before the first position, or null: zeros
};

constexpr float kExact = 1e-14f;     // of |rest|^2 / |q|^2
constexpr float kSmallest = 1e-36f;  // |rest|^2 whose quotients have all digits
constexpr Index kRows = 4;           // of S, in separate sums

// S (rows, P) of D rows: S = a S + k k^T.
MLXHOG_CLONES void update(Index D, Index P, float a, const float* k, float* S) {
  for (Index i = 0; i < D; ++i)
    for (Index j = 0; j < P; j += kLaneCount) {
      auto& s = lanes(S + i * P + j);
      s = a * s + k[i] * lanes(k + j);
    }
}

// The linear system of a position and the vectors of its solution, whole lanes whose rest is 0.
struct System {
  Index P;
  Buffer S, k, ridge, x, rest, direction, image;

  explicit System(Index D) : P(whole_lanes(D)), S(uninitialized(P * P)) {
    for (Buffer* vector : {&k, &ridge, &x, &rest, &direction, &image}) *vector = uninitialized(P);
  }
};

MLXHOG_INLINE float sum(const Lanes& x) {
  float total = 0;
  for (Index j = 0; j < kLaneCount; ++j) total += x[j];
  return total;
}

// x = (S + diag(ridge))^-1 rest; overwrites rest, direction and image.
MLXHOG_CLONES void solve(const System& system, Index steps) {
  const Index P = system.P;
  float *x = system.x.get(), *rest = system.rest.get(), *direction = system.direction.get();
  float* image = system.image.get();
  Lanes squares{};
  for (Index j = 0; j < P; j += kLaneCount) {
    const Lanes r = lanes(rest + j);
    lanes(direction + j) = r, lanes(x + j) = Lanes{};
    squares += r * r;
  }
  float size = sum(squares);
  const float exact = std::clamp(kExact * size, kSmallest, std::numeric_limits<float>::max());
  for (Index step = 0; step < steps && !(size <= exact); ++step) {  // also of a NaN or infinity, which is then in x
    Lanes curvatures{};
    for (Index j = 0; j < P; j += kLaneCount) {
      Lanes sums[kRows] = {};
      for (Index i = 0; i < P; i += kRows)
        for (Index r = 0; r < kRows; ++r)
          sums[r] += direction[i + r] * lanes(&system.S[(i + r) * P + j]);  // S is symmetric
      const Lanes own = lanes(direction + j);
      const Lanes y = (sums[0] + sums[1]) + (sums[2] + sums[3]) + lanes(&system.ridge[j]) * own;
      lanes(image + j) = y;
      curvatures += own * y;
    }
    const float curvature = sum(curvatures), before = size;
    const float length = curvature == 0 ? 0 : size / curvature;
    squares = Lanes{};
    for (Index j = 0; j < P; j += kLaneCount) {
      lanes(x + j) += length * lanes(direction + j);
      const Lanes r = lanes(rest + j) - length * lanes(image + j);
      lanes(rest + j) = r;
      squares += r * r;
    }
    size = sum(squares);
    for (Index j = 0; j < P; j += kLaneCount)
      lanes(direction + j) = lanes(rest + j) + (size / before) * lanes(direction + j);
  }
}

void regression_head(const RecurrenceShape& s, const RegressionInputs& in, Index steps, Index b, Index head, System& work,
                     float* x, float* last, float* kept) {
  const Index D = s.DK, P = work.P, pair = b * s.NH + head, state = D * D;
  std::fill_n(work.S.get(), P * P, 0.0f);
  if (in.state) copy_rows(D, D, in.state + pair * state, D, work.S.get(), P);
  copy_rows(1, D, in.ridge + head * D, D, work.ridge.get(), P, P);
  for (Index t = 0; t < s.S; ++t) {
    const Index row = (b * s.S + t) * s.NH + head;
    if (kept && t % s.chunk() == 0)
      copy_rows(D, D, work.S.get(), P, kept + (pair * s.chunks() + t / s.chunk()) * state, D);
    copy_rows(1, D, in.k + row * D, D, work.k.get(), P, P);
    copy_rows(1, D, in.q + row * D, D, work.rest.get(), P, P);
    update(D, P, exp_f32(in.log_decay[row]), work.k.get(), work.S.get());
    solve(work, steps);
    copy_rows(1, D, work.x.get(), P, x + row * D, D);
  }
  if (last) copy_rows(D, D, work.S.get(), P, last + pair * state, D);
}

}  // namespace

void bind_regression(nb::module_& m) {
  def(m, "regression",
      "q k: B S NH D, log_decay: B S NH 1, ridge: NH D, state: B NH D D, x: B S NH D, last: B NH D D, "
      "kept: B NH NC D D",
      "S_t = exp(log_decay_t) S_{t-1} + k_t k_t^T, x_t = (S_t + diag(ridge))^-1 q_t by conjugate gradients; kept as "
      "that of `recurrence`.",
      [](Sizes& sizes, Floats q, Floats k, Floats log_decay, Floats ridge, MaybeFloats state, Result x,
         MaybeResult last, MaybeResult kept, Index steps, int threads) {
        const Index D = sizes["D"];
        const RecurrenceShape s{sizes["B"], sizes["S"], sizes["NH"], D, D, 1};
        sizes.expect({{"NC", s.chunks()}});
        const RegressionInputs in{q, k, log_decay, ridge, state};
        for_each_head(s.B, s.NH, D, threads, [&] { return System(D); }, [&](Index b, Index head, System& work) {
          regression_head(s, in, steps, b, head, work, x, last, kept);
        });
      }, "steps"_a);
}

}  // namespace mlxhog
