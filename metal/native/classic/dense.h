// Linear models on dense rows, one-vs-rest where there are several classes (the image SVM).
//
// f(x) = sum_a sum_c loss(y_ac, z_a.x_c), with y_ac = +1 for the row's own class and -1 else. The gradient of a
// batch is collected in private memory at the x of its reads, then subtracted row by row, so all of write() is
// `x -= step * g`. A class without a gradient is not written.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "linear.h"

// SIMD of linear models on runs of x, which alone is shared, by the rules of updates/elements.h; every sum has a fixed
// order.
extern "C" {

// z.x in 32 partial sums, element i in sum i modulo 32, added by halves: sum j += sum j + 16, then 8, 4, 2, 1.
float mlxhog_dense_dot(const float* x, const float* z, std::size_t n);
// g += c * z
void mlxhog_dense_collect(float* g, const float* z, float c, std::size_t n);
// x -= step * g
void mlxhog_dense_subtract(float* x, const float* g, float step, std::size_t n);
// x = x == base ? mine : x + (mine - base); mine = base = x
void mlxhog_dense_merge(float* x, float* mine, float* base, std::size_t n);
}

namespace mlxhog::classic {

struct DenseRows {
  const float* features;  // (n, d)
  const float* labels;    // the class number, or the label itself where there is one class
  std::size_t n, d;

  const float* row(std::int32_t e) const { return features + static_cast<std::size_t>(e) * d; }
};

class DenseLinear {
 public:
  // x: `classes` blocks of size / classes floats, the first d of each in use, in rows of `width` floats.
  DenseLinear(float* x, std::size_t size, std::size_t width, DenseRows rows, Loss loss, std::size_t classes)
      : x_(x), size_(size), width_(width), stride_(size / classes), classes_(classes), rows_(rows), loss_(loss) {}

  struct Scratch {
    Scratch(const DenseLinear& problem, std::size_t, bool)
        : gradient(problem.classes_ * problem.rows_.d), moves(problem.classes_) {}
    std::vector<float> gradient;  // (classes, d)
    std::vector<char> moves;      // which classes have one
  };

  std::size_t n() const { return rows_.n; }
  std::size_t words() const { return size_ / width_; }

  MLXHOG_PREFETCH void prefetch(const std::int32_t* order, std::size_t i, std::size_t count) const {
    constexpr std::size_t kLines = 4, kFloatsPerLine = 16;  // the hardware finds the rest
    if (i >= count) return;
    for (std::size_t k = 0; k < kLines; ++k) __builtin_prefetch(rows_.row(order[i]) + k * kFloatsPerLine);
  }

  template <class Access>
  void read(const std::int32_t* examples, std::size_t b, const Access&, Scratch& scratch) const {
    for (std::size_t c = 0; c < classes_; ++c) {
      float* g = scratch.gradient.data() + c * rows_.d;
      scratch.moves[c] = false;
      std::fill(g, g + rows_.d, 0.0f);
      for (std::size_t j = 0; j < b; ++j) {
        const float* z = rows_.row(examples[j]);
        const float slope = loss_slope(loss_, mlxhog_dense_dot(x_ + c * stride_, z, rows_.d), label(examples[j], c));
        if (slope == 0.0f) continue;
        mlxhog_dense_collect(g, z, slope, rows_.d);
        scratch.moves[c] = true;
      }
    }
  }

  template <class Access>
  void write(const std::int32_t*, std::size_t, const Access& access, const Scratch& scratch, float step) const {
    each_row(scratch, [&](std::size_t word, float* x, const float* g, std::size_t n) {
      access.row(word, [&] { mlxhog_dense_subtract(x, g, step, n); });
    });
  }

  template <class Visit>
  void touched(const std::int32_t*, std::size_t, const Scratch& scratch, Visit visit) const {
    each_row(scratch, [&](std::size_t word, float*, const float*, std::size_t) { visit(word); });
  }

 private:
  float label(std::int32_t e, std::size_t c) const {
    if (classes_ == 1) return rows_.labels[e];
    return rows_.labels[e] == static_cast<float>(c) ? 1.0f : -1.0f;
  }

  // run(lock word, x, its gradient, floats) for every row of every class that moves.
  template <class Run>
  void each_row(const Scratch& scratch, Run run) const {
    for (std::size_t c = 0; c < classes_; ++c) {
      if (!scratch.moves[c]) continue;
      for (std::size_t u = 0; u < rows_.d; u += width_) {
        run((c * stride_ + u) / width_, x_ + c * stride_ + u, scratch.gradient.data() + c * rows_.d + u,
            u + width_ <= rows_.d ? width_ : rows_.d - u);
      }
    }
  }

  float* x_;
  std::size_t size_, width_, stride_, classes_;
  DenseRows rows_;
  Loss loss_;
};

}  // namespace mlxhog::classic
