#include "dense.h"

#include <algorithm>

namespace mlxhog::classic {
namespace {

double margin(const float* x, const float* z, std::size_t d) {
  double sum = 0.0;
  for (std::size_t u = 0; u < d; ++u) sum += static_cast<double>(z[u]) * x[u];
  return sum;
}

}  // namespace

void DenseLinear::gradient(const std::int32_t* examples, std::size_t b, Scratch& scratch) const {
  for (std::size_t c = 0; c < classes_; ++c) {
    float* g = scratch.gradient.data() + c * rows_.d;
    const float* x = x_ + c * stride_;
    scratch.moves[c] = shrink_ != nullptr;
    std::fill(g, g + rows_.d, 0.0f);
    for (std::size_t j = 0; j < b; ++j) {
      const float* z = rows_.row(examples[j]);
      const float slope = loss_slope(loss_, mlxhog_dense_dot(x, z, rows_.d), label(examples[j], c));
      if (slope == 0.0f) continue;
      mlxhog_dense_collect(g, z, slope, rows_.d);
      scratch.moves[c] = true;
    }
    if (shrink_ != nullptr) mlxhog_dense_shrink(g, x, shrink_, static_cast<float>(b), rows_.d);
  }
}

double DenseLinear::objective(const float* x) const {
  double total = 0.0, shrunk = 0.0;
  for (std::size_t c = 0; c < classes_; ++c) {
    const float* xc = x + c * stride_;
    for (std::size_t e = 0; e < rows_.n; ++e) {
      const auto row = static_cast<std::int32_t>(e);
      total += loss_value(loss_, margin(xc, rows_.row(row), rows_.d), label(row, c));
    }
    for (std::size_t u = 0; shrink_ != nullptr && u < rows_.d; ++u) {
      shrunk += static_cast<double>(shrink_[u]) * xc[u] * xc[u];
    }
  }
  return total + 0.5 * static_cast<double>(rows_.n) * shrunk;
}

std::size_t DenseLinear::errors(const float* x) const {
  std::size_t wrong = 0;
  for (std::size_t e = 0; e < rows_.n; ++e) {
    const float* z = rows_.row(static_cast<std::int32_t>(e));
    if (classes_ == 1) {
      wrong += (margin(x, z, rows_.d) >= 0.0) != (rows_.labels[e] > 0.0f);
      continue;
    }
    std::size_t best = 0;
    double largest = margin(x, z, rows_.d);
    for (std::size_t c = 1; c < classes_; ++c) {
      const double m = margin(x + c * stride_, z, rows_.d);
      if (m > largest) best = c, largest = m;
    }
    wrong += rows_.labels[e] != static_cast<float>(best);
  }
  return wrong;
}

}  // namespace mlxhog::classic
