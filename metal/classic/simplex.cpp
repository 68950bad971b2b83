#include "simplex.h"

#include <algorithm>
#include <cmath>

namespace mlxhog::classic {

void project_onto_simplex(float* v, std::size_t n, float* scratch) {
  // A heap gives the entries in falling order one by one; most rows have few above theta, so it is rarely
  // emptied.
  std::copy(v, v + n, scratch);
  std::make_heap(scratch, scratch + n);
  float sum = 0.0f, theta = 0.0f;
  for (std::size_t k = 1; k <= n; ++k) {
    const float largest = scratch[0];
    sum += largest;
    const float next = (sum - 1.0f) / static_cast<float>(k);
    if (k > 1 && !(largest > next)) break;
    theta = next;
    std::pop_heap(scratch, scratch + (n - k + 1));
  }
  for (std::size_t i = 0; i < n; ++i) v[i] = std::max(v[i] - theta, 0.0f);
}

bool sums_to_one(const float* v, std::size_t n) {
  constexpr float kRounding = 0x1p-22f;  // per entry; a projection of entries below 4 stays within it
  float sum = 0.0f;
  for (std::size_t i = 0; i < n; ++i) sum += v[i];
  return std::abs(sum - 1.0f) <= kRounding * static_cast<float>(n);
}

}  // namespace mlxhog::classic
