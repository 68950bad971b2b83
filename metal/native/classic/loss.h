// The slopes of the losses of linear models, as functions of the margin z.x and the label y.
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

}  // namespace mlxhog::classic
