// Block-diagonal matrices of square blocks of 1, 2, 4, 8 or 16 numbers: a vector of 16 lanes holds whole blocks, and
// each of its numbers is spread over the lanes of its block.
#pragma once

#include <vector>

#include "simd.h"

namespace mlxhog {

bool is_small_block(Index out, Index in);

// The coefficients as vectors: coefficient k of lane c at [k * padded + c], zeros in the last lanes.
struct SmallBlocks {
  Index size, width, padded;  // of a block; of a row; the same in whole vectors
  std::vector<float> coefficients;

  // W (width / size, size, size); transposed: out[i] = sum_o W[o, i] in[o].
  SmallBlocks(Index size, Index width, const float* weight, bool transposed);
};

// y = (base, or 0 where it is null) + W x of one row; base may be y.
void map_row(const SmallBlocks&, const float* x, const float* base, float* y);

// d_coefficients, laid out as those of W, += dy spread(x)
void add_outer_products(const SmallBlocks&, const float* x, const float* dy, float* d_coefficients);

// Coefficients of W back as blocks (width / size, size, size).
void to_blocks(const SmallBlocks&, const float* coefficients, float* weight);

}  // namespace mlxhog
