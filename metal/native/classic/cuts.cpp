#include "cuts.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace mlxhog::classic {

void project_onto_simplex(float* v, std::size_t n, float* scratch) {
  // Few are sorted at once; of many, most stay below theta, so a heap gives up only those that are asked for.
  const bool few = n <= 32;
  for (std::size_t i = 0; few && i < n; ++i) {
    std::size_t at = i;
    for (; at > 0 && scratch[at - 1] < v[i]; --at) scratch[at] = scratch[at - 1];
    scratch[at] = v[i];
  }
  if (!few) std::make_heap(scratch, std::copy(v, v + n, scratch));
  float sum = 0.0f, theta = 0.0f;
  for (std::size_t k = 1; k <= n; ++k) {
    if (!few) std::pop_heap(scratch, scratch + (n - k + 1));
    const float largest = scratch[few ? k - 1 : n - k];
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

namespace {

// The common part of both kinds of cuts.
class CutBase {
 public:
  explicit CutBase(const CutGraph& graph) : g_(graph) {}

  std::size_t n() const { return g_.n(); }
  std::size_t words() const { return g_.words(); }

  MLXHOG_PREFETCH void prefetch(const std::int32_t* order, std::size_t i, std::size_t count) const {
    g_.edges.prefetch(order, i, count, [&](const Pair& edge) __attribute__((always_inline)) {
      __builtin_prefetch(row(edge.first), 1);
      __builtin_prefetch(row(edge.second), 1);
    });
  }

  template <class Scratch, class Visit>
  void touched(const std::int32_t* examples, std::size_t b, const Scratch&, Visit visit) const {
    for (std::size_t k = 0; k < b; ++k) {
      const Pair edge = g_.edges[examples[k]];
      if (!g_.fixed[edge.first]) visit(g_.word0 + edge.first);
      if (!g_.fixed[edge.second]) visit(g_.word0 + edge.second);
    }
  }

 protected:
  float* row(std::size_t vertex) const { return g_.x + vertex * g_.labels; }
  static float sign(float difference) {
    return static_cast<float>(difference > 0.0f) - static_cast<float>(difference < 0.0f);
  }

  CutGraph g_;
};

// Two labels.
class TwoWayCut : public CutBase {
 public:
  using CutBase::CutBase;

  struct Scratch {
    Scratch(const TwoWayCut&, std::size_t batch, bool) : slopes(batch) {}
    std::vector<float> slopes;  // sign(x_u - x_v) of each edge
  };

  template <class Access>
  void read(const std::int32_t* examples, std::size_t b, const Access& access, Scratch& scratch) const {
    for (std::size_t k = 0; k < b; ++k) {
      const Pair edge = g_.edges[examples[k]];
      scratch.slopes[k] = sign(access.load(row(edge.first)) - access.load(row(edge.second)));
    }
  }

  // Each end is one scalar, so `lossless` swaps it and needs no lock.
  template <class Access>
  void write(const std::int32_t* examples, std::size_t b, const Access& access, const Scratch& scratch,
             float step) const {
    for (std::size_t k = 0; k < b; ++k) {
      const Pair edge = g_.edges[examples[k]];
      const float move = step * edge.value * scratch.slopes[k];
      if (!g_.fixed[edge.first]) access.update(row(edge.first), [=](float v) { return clamp(v - move); });
      if (!g_.fixed[edge.second]) access.update(row(edge.second), [=](float v) { return clamp(v + move); });
    }
  }

 private:
  static float clamp(float v) { return v < 0.0f ? 0.0f : v > 1.0f ? 1.0f : v; }
};

// Three labels or more. Every write is a projected row; under a row's lock it stays one. Two racing writes may
// leave a mixture of two rows, so a row that is off the simplex is projected (privately) when it is read.
class MultiwayCut : public CutBase {
 public:
  using CutBase::CutBase;

  struct Scratch {
    Scratch(const MultiwayCut& cut, std::size_t batch, bool)
        : slopes(batch * cut.g_.labels), head(cut.g_.labels), tail(cut.g_.labels), sorted(cut.g_.labels) {}
    std::vector<float> slopes;  // sign(x_u - x_v) of each edge, label by label
    mutable std::vector<float> head, tail, sorted;
  };

  template <class Access>
  void read(const std::int32_t* examples, std::size_t b, const Access& access, Scratch& scratch) const {
    for (std::size_t k = 0; k < b; ++k) {
      const Pair edge = g_.edges[examples[k]];
      gather(edge.first, access, scratch.head, scratch.sorted);
      gather(edge.second, access, scratch.tail, scratch.sorted);
      float* slopes = scratch.slopes.data() + k * g_.labels;
      for (std::size_t j = 0; j < g_.labels; ++j) slopes[j] = sign(scratch.head[j] - scratch.tail[j]);
    }
  }

  template <class Access>
  void write(const std::int32_t* examples, std::size_t b, const Access& access, const Scratch& scratch,
             float step) const {
    for (std::size_t k = 0; k < b; ++k) {
      const Pair edge = g_.edges[examples[k]];
      const float* slopes = scratch.slopes.data() + k * g_.labels;
      move(edge.first, access, -(step * edge.value), slopes, scratch);
      move(edge.second, access, step * edge.value, slopes, scratch);
    }
  }

 private:
  template <class Access>
  void gather(std::size_t vertex, const Access& access, std::vector<float>& values, std::vector<float>& sorted) const {
    for (std::size_t j = 0; j < g_.labels; ++j) values[j] = access.load(row(vertex) + j);
    if (!sums_to_one(values.data(), g_.labels)) project_onto_simplex(values.data(), g_.labels, sorted.data());
  }

  template <class Access>
  void move(std::size_t vertex, const Access& access, float by, const float* slopes, const Scratch& scratch) const {
    if (g_.fixed[vertex]) return;
    float* values = scratch.head.data();
    access.row(g_.word0 + vertex, [&] {
      for (std::size_t j = 0; j < g_.labels; ++j) values[j] = access.load(row(vertex) + j) + by * slopes[j];
      project_onto_simplex(values, g_.labels, scratch.sorted.data());
      for (std::size_t j = 0; j < g_.labels; ++j) access.store(row(vertex) + j, values[j]);
    });
  }
};

}  // namespace

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
