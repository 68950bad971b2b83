// Multiway graph cuts: every vertex has a point of the simplex, and edges pull their ends together.
//
//   sum over edges of w_uv |x_u - x_v|_1, terminals fixed at vertices of the simplex
//
// One edge moves both ends, from their old values: x_u = P(x_u - step s), x_v = P(x_v + step s) with s = w sign(x_u -
// x_v), sign(0) = 0. With two labels a vertex is one scalar, its share of label 1, and P clamps it to [0, 1].
#pragma once

#include <cstddef>
#include <cstdint>

#include "pairs.h"
#include "scheme.h"

namespace mlxhog::classic {

// Replace v, `n` >= 1 private floats, by the nearest point of the simplex; `scratch` has room for n floats.
//
// With v in falling order, theta = (v_1 + .. + v_k - 1) / k for the largest k whose v_k stays above it; entries
// below theta become 0. Sums run in falling order in float. Source: Duchi et al. 2008, figure 1.
void project_onto_simplex(float* v, std::size_t n, float* scratch);

// Whether n entries, none negative, add up to 1 but for the rounding of a projection. A row that two racing
// projections wrote at once does not, in general.
bool sums_to_one(const float* v, std::size_t n);

// Pointers stay owned by the caller.
struct CutGraph {
  float* x;                   // (n_vertices, labels), or (n_vertices, 1) for two labels
  Pairs edges;                // head, tail, weight
  const std::uint8_t* fixed;  // (n_vertices,): 1 for terminals, whose rows are never written
  std::size_t n_vertices;
  std::size_t labels;  // floats of a row: 1 for two labels
  std::size_t word0;   // lock word of row 0, counted from the scheme's row_word0

  std::size_t n() const { return edges.size(); }
  std::size_t words() const { return word0 + n_vertices; }
};

std::size_t run(Scheme& scheme, CutGraph& graph, const Share& share);

// Sum over edges of w_uv |x_u - x_v|_1 over the floats of the rows, in double.
double objective(const CutGraph& graph, const float* x);

}  // namespace mlxhog::classic
