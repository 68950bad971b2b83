// The losses of linear models, as functions of the margin z.x and the label y.
#pragma once

#include <cmath>

namespace mlxhog::classic {

enum class Loss { hinge, logistic, squares };

// d loss / d margin; squares is (margin - y)^2 / 2. Hinge and logistic want y = -1 or +1.
inline float loss_slope(Loss loss, float margin, float y) {
  switch (loss) {
    case Loss::hinge:
      return y * margin < 1.0f ? -y : 0.0f;
    case Loss::logistic:
      // In double: a few nanoseconds beside a row, and every C library rounds to the same float.
      return static_cast<float>(-y / (1.0 + std::exp(static_cast<double>(y) * margin)));
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

}  // namespace mlxhog::classic
