#include "cuts.h"

#include <algorithm>
#include <cmath>

namespace mlxhog::classic {

namespace {

// The entries of `v` one by one in falling order. Few are sorted at once; of many, most stay below theta, so a
// heap gives up only those that are asked for.
class Falling {
 public:
  Falling(const float* v, std::size_t n, float* scratch) : scratch_(scratch), n_(n) {
    if (n > kFew) {
      std::copy(v, v + n, scratch);
      std::make_heap(scratch, scratch + n);
      return;
    }
    for (std::size_t i = 0; i < n; ++i) {
      std::size_t at = i;
      for (; at > 0 && scratch[at - 1] < v[i]; --at) scratch[at] = scratch[at - 1];
      scratch[at] = v[i];
    }
  }

  float next() {
    if (n_ <= kFew) return scratch_[taken_++];
    const float largest = scratch_[0];
    std::pop_heap(scratch_, scratch_ + (n_ - taken_++));
    return largest;
  }

 private:
  static constexpr std::size_t kFew = 32;
  float* scratch_;
  std::size_t n_, taken_ = 0;
};

}  // namespace

void project_onto_simplex(float* v, std::size_t n, float* scratch) {
  Falling falling(v, n, scratch);
  float sum = 0.0f, theta = 0.0f;
  for (std::size_t k = 1; k <= n; ++k) {
    const float largest = falling.next();
    sum += largest;
    const float next = (sum - 1.0f) / static_cast<float>(k);
    if (k > 1 && !(largest > next)) break;
    theta = next;
  }
  for (std::size_t i = 0; i < n; ++i) v[i] = std::max(v[i] - theta, 0.0f);
}

bool sums_to_one(const float* v, std::size_t n) {
  constexpr float kRounding = 0x1p-22f;  // per entry; where a row's entries added up to less than 4
  float sum = 0.0f;
  for (std::size_t i = 0; i < n; ++i) sum += v[i];
  return std::abs(sum - 1.0f) <= kRounding * static_cast<float>(n);
}

std::size_t run(Scheme& scheme, CutGraph& graph, const Share& share) {
  if (graph.labels == 1) {
    TwoWayCut cut(graph);
    return run(scheme, cut, share);
  }
  MultiwayCut cut(graph);
  return run(scheme, cut, share);
}

double objective(const CutGraph& graph, const float* x) {
  double sum = 0.0;
  for (std::size_t e = 0; e < graph.n(); ++e) {
    const Pair edge = graph.edges[e];
    const float* head = x + edge.first * graph.labels;
    const float* tail = x + edge.second * graph.labels;
    double apart = 0.0;
    for (std::size_t j = 0; j < graph.labels; ++j) {
      apart += std::abs(static_cast<double>(Relaxed::load(head + j)) - static_cast<double>(Relaxed::load(tail + j)));
    }
    sum += static_cast<double>(edge.value) * apart;
  }
  return sum;
}

}  // namespace mlxhog::classic
