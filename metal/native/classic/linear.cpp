#include "linear.h"

namespace mlxhog::classic {

double SparseLinear::objective(const float* x) const {
  double total = 0.0;
  for (std::size_t e = 0; e < rows_.n; ++e) {
    double margin = 0.0, shrunk = 0.0;
    for (std::size_t k = rows_.begin(e); k < rows_.end(e); ++k) {
      const double v = x[index(k)];
      margin += rows_.values[k] * v;
      if (shrink_ != nullptr) shrunk += shrink_[index(k)] * v * v;
    }
    total += loss_value(loss_, margin, rows_.labels[e]) + 0.5 * shrunk;
  }
  return total;
}

std::size_t SparseLinear::errors(const float* x) const {
  std::size_t wrong = 0;
  for (std::size_t e = 0; e < rows_.n; ++e) {
    double margin = 0.0;
    for (std::size_t k = rows_.begin(e); k < rows_.end(e); ++k) margin += static_cast<double>(rows_.values[k]) * x[index(k)];
    wrong += (margin >= 0.0) != (rows_.labels[e] > 0.0f);
  }
  return wrong;
}

}  // namespace mlxhog::classic
