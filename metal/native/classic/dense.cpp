#include "dense.h"

#include <algorithm>

namespace mlxhog::classic {

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

}  // namespace mlxhog::classic
