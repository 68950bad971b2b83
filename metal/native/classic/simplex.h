// The projection onto the simplex {x >= 0, sum x = 1}.
#pragma once

#include <cstddef>

namespace mlxhog::classic {

// Replace v, `n` >= 1 private floats, by the nearest point of the simplex; `scratch` has room for n floats.
//
// With v in falling order, theta = (v_1 + .. + v_k - 1) / k for the largest k whose v_k stays above it; what is
// below theta becomes 0. Sums run in falling order in float. Source: spec hogwild.md 3.3.
void project_onto_simplex(float* v, std::size_t n, float* scratch);

// Whether n entries, none negative, add up to 1 but for what a projection's rounding leaves. A row that two
// racing projections wrote at once does not, in general.
bool sums_to_one(const float* v, std::size_t n);

}  // namespace mlxhog::classic
