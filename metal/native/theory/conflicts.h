// Who meets whom: counts of intersecting supports, of sparse rows and of bitmaps.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlxhog {

// Edges are met in blocks of this many, so that the bitmaps of a block stay in the cache.
constexpr std::size_t kBlock = 8192;

// met[e] += how many of the edges first .. first + kBlock - 1 share a vertex with edge e, itself included; an edge
// without vertices meets none. Edge e holds indices[indptr[e] .. indptr[e + 1]), distinct, in [0, vertices).
void meet_block(const std::int64_t* indptr, const std::int32_t* indices, std::size_t edges, std::size_t vertices,
                std::size_t first, std::int64_t* met);

// met[a] = how many of the rows of `others` share a bit with row a of `rows`; both have `width` bytes per row.
void bitmap_meetings(const std::uint8_t* rows, std::size_t count, const std::uint8_t* others,
                     std::size_t other_count, std::size_t width, std::int64_t* met);

}  // namespace mlxhog
