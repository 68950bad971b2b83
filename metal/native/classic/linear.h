// Linear models on sparse rows: hinge (SVM), logistic, least squares, each with a degree-scaled shrink.
//
// f(x) = sum_a [ loss(y_a, z_a.x) + sum_{u in a} shrink_u / 2 * x_u^2 ],  shrink_u = 2 * lam / d_u, so that
// over an epoch every coordinate is shrunk once. One example: x_u -= step * (slope * z_u + shrink_u * x_u)
// for the coordinates of its row only. Source: Niu et al. 2011, section 3.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "access.h"

namespace mlxhog::classic {

enum class Loss { hinge, logistic, squares };

// d loss / d margin; squares is (margin - y)^2 / 2. Hinge and logistic want y = -1 or +1.
inline float loss_slope(Loss loss, float margin, float y) {
  switch (loss) {
    case Loss::hinge: return y * margin < 1.0f ? -y : 0.0f;
    case Loss::logistic:
      // In double: a few nanoseconds beside a row, and every C library rounds to the same float.
      return static_cast<float>(-y / (1.0 + std::exp(static_cast<double>(y) * margin)));
    case Loss::squares: return margin - y;
  }
  return 0.0f;
}

// Rows of a sparse matrix with their labels; indices ascend within a row.
struct SparseRows {
  const std::int64_t* indptr;
  const std::int32_t* indices;
  const float* values;
  const float* labels;
  std::size_t n;

  std::size_t begin(std::int32_t e) const { return static_cast<std::size_t>(indptr[e]); }
  std::size_t end(std::int32_t e) const { return static_cast<std::size_t>(indptr[e + 1]); }
};

class SparseLinear {
 public:
  // `shrink` may be null; x is rows of `width` floats, each behind one lock word.
  SparseLinear(float* x, std::size_t size, std::size_t width, SparseRows rows, const float* shrink, Loss loss)
      : x_(x), size_(size), width_(width), rows_(rows), shrink_(shrink), loss_(loss) {}

  struct Scratch {
    Scratch(const SparseLinear& problem, std::size_t batch, bool frozen)
        : slopes(batch), keeps(problem.shrink_ != nullptr && (frozen || batch > 1)) {}
    std::vector<float> slopes;  // one per example
    std::vector<float> old;     // if `keeps`: x at the coordinates of all examples, one after the other
    bool keeps;
  };

  std::size_t n() const { return rows_.n; }
  std::size_t words() const { return size_ / width_; }
  std::size_t width() const { return width_; }
  float* x() const { return x_; }

  MLXHOG_PREFETCH void prefetch(const std::int32_t* order, std::size_t i, std::size_t count) const {
    constexpr std::size_t kAhead = 4, kFloatsPerLine = 16;
    if (i + 2 * kAhead < count) {
      __builtin_prefetch(rows_.indptr + order[i + 2 * kAhead]);
      __builtin_prefetch(rows_.labels + order[i + 2 * kAhead]);
    }
    if (i + kAhead >= count) return;
    const std::int32_t e = order[i + kAhead];
    for (std::size_t k = rows_.begin(e), end = rows_.end(e); k < end; k += kFloatsPerLine) {
      __builtin_prefetch(rows_.indices + k);
      __builtin_prefetch(rows_.values + k);
    }
  }

  template <class Access>
  void read(const std::int32_t* examples, std::size_t b, const Access& access, Scratch& scratch) {
    scratch.old.clear();
    for (std::size_t j = 0; j < b; ++j) {
      const std::int32_t e = examples[j];
      scratch.slopes[j] = loss_slope(loss_, margin(e, access), rows_.labels[e]);
      if (!scratch.keeps) continue;
      for (std::size_t k = rows_.begin(e); k < rows_.end(e); ++k)
        scratch.old.push_back(access.load(access.cell(x_, index(k))));
    }
  }

  template <class Access>
  void write(const std::int32_t* examples, std::size_t b, const Access& access, const Scratch& scratch, float step) {
    const float* old = scratch.old.data();
    for (std::size_t j = 0; j < b; ++j) {
      const std::size_t begin = rows_.begin(examples[j]), end = rows_.end(examples[j]);
      write_row(begin, end - begin, access, scratch.slopes[j], scratch.keeps ? old : nullptr, step);
      old += scratch.keeps ? end - begin : 0;
    }
  }

  template <class Visit>
  void touched(const std::int32_t* examples, std::size_t b, const Scratch&, Visit visit) const {
    for (std::size_t j = 0; j < b; ++j)
      for (std::size_t k = rows_.begin(examples[j]); k < rows_.end(examples[j]); ++k) visit(index(k) / width_);
  }

 private:
  std::size_t index(std::size_t k) const { return static_cast<std::size_t>(rows_.indices[k]); }

  // Four partial sums, element k of the row in sum k modulo 4, added by halves: (0 + 2) + (1 + 3).
  template <class Access>
  float margin(std::int32_t e, const Access& access) const {
    const std::int32_t* u = rows_.indices + rows_.begin(e);
    const float* z = rows_.values + rows_.begin(e);
    const std::size_t n = rows_.end(e) - rows_.begin(e);
    float* x = x_;
    float sum0 = 0.0f, sum1 = 0.0f, sum2 = 0.0f, sum3 = 0.0f;
    const auto term = [=](std::size_t i) { return z[i] * access.load(access.cell(x, static_cast<std::size_t>(u[i]))); };
    std::size_t k = 0;
    for (; k + 4 <= n; k += 4) sum0 += term(k), sum1 += term(k + 1), sum2 += term(k + 2), sum3 += term(k + 3);
    if (k < n) sum0 += term(k);
    if (k + 1 < n) sum1 += term(k + 1);
    if (k + 2 < n) sum2 += term(k + 2);
    return (sum0 + sum2) + (sum1 + sum3);
  }

  // x_u = f(k, x_u) for the coordinates u[k] of a row, which are distinct.
  template <class Access, class F>
  void update_row(const std::int32_t* u, std::size_t n, const Access& access, F f) const {
    float* x = x_;
    const auto cell = [=](std::size_t k) { return access.cell(x, static_cast<std::size_t>(u[k])); };
    std::size_t k = 0;
    for (; k + kGroup <= n; k += kGroup) {
      float* const p[kGroup] = {cell(k), cell(k + 1), cell(k + 2), cell(k + 3)};
      access.update(p, kGroup, [=](std::size_t j, float v) { return f(k + j, v); });
    }
    for (; k < n; ++k) access.update(cell(k), [=](float v) { return f(k, v); });
  }

  template <class Access>
  void write_row(std::size_t begin, std::size_t n, const Access& access, float slope, const float* old,
                 float step) const {
    const std::int32_t* u = rows_.indices + begin;
    const float *z = rows_.values + begin, *shrink = shrink_;
    if (shrink == nullptr) {
      if (slope == 0.0f) return;
      update_row(u, n, access, [=](std::size_t k, float v) { return v - step * (slope * z[k]); });
    } else if (old != nullptr) {
      update_row(u, n, access,
                 [=](std::size_t k, float v) { return v - step * (slope * z[k] + shrink[u[k]] * old[k]); });
    } else {
      update_row(u, n, access, [=](std::size_t k, float v) { return v - step * (slope * z[k] + shrink[u[k]] * v); });
    }
  }

  float* x_;
  std::size_t size_, width_;
  SparseRows rows_;
  const float* shrink_;
  Loss loss_;
};

}  // namespace mlxhog::classic
