// Linear models on sparse rows: hinge (SVM), logistic, least squares, each with a degree-scaled shrink.
//
// f(x) = sum_a [ loss(y_a, z_a.x) + sum_{u in a} shrink_u / 2 * x_u^2 ],  shrink_u = 2 * lam / d_u, so that
// over an epoch every coordinate is shrunk once. One example: x_u -= step * (slope * z_u + shrink_u * x_u)
// for the coordinates of its row only. Source: spec hogwild.md 3.1; Niu et al. 2011, section 3.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mlxhog::classic {

enum class Loss { hinge, logistic, squares };

// d loss / d margin; squares is (m - y)^2 / 2.
inline float loss_slope(Loss loss, float margin, float y) {
  switch (loss) {
    case Loss::hinge:
      return y * margin < 1.0f ? -y : 0.0f;
    case Loss::logistic:
      return -y / (1.0f + std::exp(y * margin));
    case Loss::squares:
      return margin - y;
  }
  return 0.0f;
}

// The loss itself, in double; log(1 + exp(-t)) without overflow.
inline double loss_value(Loss loss, double margin, double y) {
  const double t = y * margin;
  switch (loss) {
    case Loss::hinge:
      return t < 1.0 ? 1.0 - t : 0.0;
    case Loss::logistic:
      return t > 0.0 ? std::log1p(std::exp(-t)) : std::log1p(std::exp(t)) - t;
    case Loss::squares:
      return 0.5 * (margin - y) * (margin - y);
  }
  return 0.0;
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
  SparseLinear(float* x, std::size_t size, std::size_t width, SparseRows rows, const float* shrink, Loss loss,
               bool active_rows)
      : x_(x), size_(size), width_(width), rows_(rows), shrink_(shrink), loss_(loss), active_rows_(active_rows) {}

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

  void prefetch(const std::int32_t* order, std::size_t i, std::size_t count) const {
    constexpr std::size_t kAhead = 4, kFloatsPerLine = 16;
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
      for (std::size_t k = rows_.begin(e); k < rows_.end(e); ++k) {
        scratch.old.push_back(access.load(access.cell(x_, index(k))));
      }
    }
  }

  template <class Access>
  void write(const std::int32_t* examples, std::size_t b, const Access& access, const Scratch& scratch, float step) {
    const float* old = scratch.old.data();
    for (std::size_t j = 0; j < b; ++j) {
      const std::size_t begin = rows_.begin(examples[j]), end = rows_.end(examples[j]);
      write_row(begin, end, access, scratch.slopes[j], scratch.keeps ? old : nullptr, step);
      old += scratch.keeps ? end - begin : 0;
    }
  }

  template <class Visit>
  void touched(const std::int32_t* examples, std::size_t b, const Scratch&, Visit visit) const {
    for (std::size_t j = 0; j < b; ++j) {
      for (std::size_t k = rows_.begin(examples[j]); k < rows_.end(examples[j]); ++k) visit(index(k) / width_);
    }
  }

  double objective(const float* x) const;
  // Examples whose sign is wrong (0 counts as +1).
  std::size_t errors(const float* x) const;

 private:
  std::size_t index(std::size_t k) const { return static_cast<std::size_t>(rows_.indices[k]); }

  // Four partial sums, element k of the row in sum k modulo 4, added as (0 + 1) + (2 + 3).
  template <class Access>
  float margin(std::int32_t e, const Access& access) const {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    const std::size_t begin = rows_.begin(e), end = rows_.end(e);
    for (std::size_t k = begin; k < end; ++k) {
      sum[(k - begin) % 4] += rows_.values[k] * access.load(access.cell(x_, index(k)));
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  template <class Access>
  void write_row(std::size_t begin, std::size_t end, const Access& access, float slope, const float* old, float step) {
    ++seen_;
    if (slope != 0.0f) ++active_;
    if (slope == 0.0f && (shrink_ == nullptr || active_rows_)) return;
    if (shrink_ == nullptr) {
      for (std::size_t k = begin; k < end; ++k) {
        const float g = slope * rows_.values[k];
        access.update(access.cell(x_, index(k)), [=](float v) { return v - step * g; });
      }
      return;
    }
    const float more = active_rows_ ? static_cast<float>(static_cast<double>(seen_) / static_cast<double>(active_)) : 1.0f;
    for (std::size_t k = begin; k < end; ++k) {
      const float z = slope * rows_.values[k], s = more * shrink_[index(k)];
      if (old == nullptr) {
        access.update(access.cell(x_, index(k)), [=](float v) { return v - step * (z + s * v); });
      } else {
        const float g = z + s * old[k - begin];
        access.update(access.cell(x_, index(k)), [=](float v) { return v - step * g; });
      }
    }
  }

  float* x_;
  std::size_t size_, width_;
  SparseRows rows_;
  const float* shrink_;
  Loss loss_;
  bool active_rows_;
  // Rows seen and rows with a gradient, by this worker: on active rows only, the shrink is scaled by their
  // ratio, so that it stays the same in expectation.
  std::uint64_t seen_ = 0, active_ = 0;
};

}  // namespace mlxhog::classic
