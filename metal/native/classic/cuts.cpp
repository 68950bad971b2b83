#include "cuts.h"

#include <cmath>

namespace mlxhog::classic {

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
