// Products of matrices by a threadgroup: tiles of both come to threadgroup memory, where simdgroups multiply them
// as matrices of 8 x 8. A result has kTileRows x kTileColumns elements; each simdgroup holds kTileOwnRows rows of it.
#pragma once

#include <metal_stdlib>
#include <metal_simdgroup_matrix>

using namespace metal;

namespace mlxhog {

enum : uint {
  kTileRows = 64,
  kTileColumns = 32,
  kTileDepth = 32,  // of what a result sums over, at once: a line of 128 bytes
  kTileLanes = 32,  // a simdgroup
  kTileSimdgroups = 4,
  kTileOwnRows = kTileRows / kTileSimdgroups,
  kTilePad = 4,  // floats, so that rows do not begin in the same bank
  kTileStride = kTileColumns + kTilePad,
  kTileLeft = kTileRows * (kTileDepth + kTilePad),
  kTileFloats = kTileLeft + kTileDepth * kTileStride,  // of both tiles, and of a result in their place
  kTileMatrices = 8,                                   // of a simdgroup's part of a result: 2 x 4
};

// A matrix in device memory of type R, float or bfloat, row by row; what is outside counts as 0.
template <typename R>
struct TileMatrix {
  const device R* at;
  const device float* factors;  // of the rows, or null
  uint stride, rows, columns;
};

// Copy kHeight x kWidth elements from `row`, `column` on.
template <uint kHeight, uint kWidth, typename R>
inline void tile_copy(threadgroup float* tile, TileMatrix<R> x, uint row, uint column, uint thread_index) {
  for (uint at = thread_index; at < kHeight * kWidth; at += kTileSimdgroups * kTileLanes) {
    const uint r = at / kWidth, c = at % kWidth;
    float value = 0.0f;
    if (row + r < x.rows && column + c < x.columns) {
      value = static_cast<float>(x.at[(row + r) * x.stride + column + c]);
      if (x.factors != nullptr) value *= x.factors[row + r];
    }
    tile[r * (kWidth + kTilePad) + c] = value;
  }
}

// A simdgroup's part of a result, 2 x 4 matrices. They stay in registers, as in MLX's steel kernels (`MMATile`): a
// member of fixed size, passed by reference, indexed only in loops that are unrolled.
struct TilePart {
  simdgroup_float8x8 at[kTileMatrices];
};

inline void tile_zero(thread TilePart& result) {
#pragma clang loop unroll(full)
  for (uint k = 0; k < kTileMatrices; ++k) result.at[k] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}

// Multiply a result by `factor`; 0 clears it, also where it is not finite.
inline void tile_scale(thread TilePart& result, float factor) {
  if (factor == 0.0f) return tile_zero(result);
#pragma clang loop unroll(full)
  for (uint k = 0; k < kTileMatrices; ++k) {
    result.at[k].thread_elements()[0] *= factor;
    result.at[k].thread_elements()[1] *= factor;
  }
}

// Add a product over `depth`: of `a`, or its transpose if kTransposedA, and `b`, or its transpose. Every thread of the
// threadgroup calls it, after it has read what it needs of `tiles`, kTileFloats floats; the first barrier is inside.
template <bool kTransposedA, bool kTransposedB, typename A, typename B>
inline void tile_add_product(thread TilePart& result, TileMatrix<A> a, TileMatrix<B> b, uint depth,
                             threadgroup float* tiles, uint simdgroup, uint lane) {
  threadgroup float* left = tiles;
  threadgroup float* right = tiles + kTileLeft;
  const uint thread_index = simdgroup * kTileLanes + lane, own = simdgroup * kTileOwnRows;
  for (uint k = 0; k < depth; k += kTileDepth) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // what the tiles held before has been read
    if (kTransposedA) tile_copy<kTileDepth, kTileRows>(left, a, k, 0, thread_index);
    else tile_copy<kTileRows, kTileDepth>(left, a, 0, k, thread_index);
    if (kTransposedB) tile_copy<kTileColumns, kTileDepth>(right, b, 0, k, thread_index);
    else tile_copy<kTileDepth, kTileColumns>(right, b, k, 0, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the tiles are written
#pragma clang loop unroll(full)
    for (uint step = 0; step < kTileDepth; step += 8) {
      simdgroup_float8x8 a_part[2], b_part;
#pragma clang loop unroll(full)
      for (uint r = 0; r < 2; ++r) {
        const uint row = own + 8 * r;
        if (kTransposedA)
          simdgroup_load(a_part[r], left + step * (kTileRows + kTilePad) + row, kTileRows + kTilePad, ulong2(0), true);
        else simdgroup_load(a_part[r], left + row * (kTileDepth + kTilePad) + step, kTileDepth + kTilePad);
      }
#pragma clang loop unroll(full)
      for (uint c = 0; c < 4; ++c) {
        if (kTransposedB) simdgroup_load(b_part, right + 8 * c * kTileStride + step, kTileStride, ulong2(0), true);
        else simdgroup_load(b_part, right + step * kTileStride + 8 * c, kTileStride);
#pragma clang loop unroll(full)
        for (uint r = 0; r < 2; ++r)
          simdgroup_multiply_accumulate(result.at[4 * r + c], a_part[r], b_part, result.at[4 * r + c]);
      }
    }
  }
}

// Add a product of matrices in registers and `b`: a simdgroup's own rows of `a`, whose columns are at most as many as a
// tile has rows, a part for each kTileColumns of them. Above its diagonal `a` is 0. As tile_add_product otherwise.
template <typename R>
inline void tile_add_lower_product(thread TilePart& result, thread TilePart (&a)[2], TileMatrix<R> b, uint depth,
                                   threadgroup float* tiles, uint simdgroup, uint lane) {
  const uint thread_index = simdgroup * kTileLanes + lane, own = simdgroup * kTileOwnRows;
#pragma clang loop unroll(full)
  for (uint part = 0; part < 2; ++part) {
    if (part * kTileColumns >= depth) return;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // what the tile held before has been read
    tile_copy<kTileDepth, kTileColumns>(tiles, b, part * kTileColumns, 0, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the tile is written
#pragma clang loop unroll(full)
    for (uint step = 0; step < kTileDepth; step += 8) {
      if (part * kTileColumns + step >= own + kTileOwnRows) continue;
#pragma clang loop unroll(full)
      for (uint c = 0; c < 4; ++c) {
        simdgroup_float8x8 b_part;
        simdgroup_load(b_part, tiles + step * kTileStride + 8 * c, kTileStride);
#pragma clang loop unroll(full)
        for (uint r = 0; r < 2; ++r)
          simdgroup_multiply_accumulate(result.at[4 * r + c], a[part].at[4 * r + step / 8], b_part,
                                        result.at[4 * r + c]);
      }
    }
  }
}

// Write a result over the tiles of its product; a simdgroup may then use its own rows, kTileStride floats apart.
inline void tile_store(thread TilePart& result, threadgroup float* tiles, uint simdgroup) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // both tiles have been read
#pragma clang loop unroll(full)
  for (uint k = 0; k < kTileMatrices; ++k) {
    const uint row = simdgroup * kTileOwnRows + 8 * (k / 4);
    simdgroup_store(result.at[k], tiles + row * kTileStride + 8 * (k % 4), kTileStride);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Read a simdgroup's own rows back, after it has changed them.
inline void tile_load(thread TilePart& result, threadgroup float* tiles, uint simdgroup) {
  simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll(full)
  for (uint k = 0; k < kTileMatrices; ++k) {
    const uint row = simdgroup * kTileOwnRows + 8 * (k / 4);
    simdgroup_load(result.at[k], tiles + row * kTileStride + 8 * (k % 4), kTileStride);
  }
}

// A result from device memory, through the tiles, which nobody reads any more.
inline void tile_read(thread TilePart& result, TileMatrix<float> x, threadgroup float* tiles, uint simdgroup, uint lane) {
  const uint own = simdgroup * kTileOwnRows;
  for (uint r = own; r < own + kTileOwnRows; ++r)
    tiles[r * kTileStride + lane] = r < x.rows && lane < x.columns ? x.at[r * x.stride + lane] : 0.0f;
  tile_load(result, tiles, simdgroup);
}

}  // namespace mlxhog
