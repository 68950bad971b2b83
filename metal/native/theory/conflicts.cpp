#include "conflicts.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

namespace mlxhog {
namespace {

constexpr std::size_t kWords = kBlock / 64;
// A vertex with more edges in a block than this is kept there as a bitmap: an OR of kWords words costs
// about as much as setting this many single bits.
constexpr std::size_t kSparse = 24;

using Bitmap = std::array<std::uint64_t, kWords>;

inline void set(Bitmap& bitmap, std::int32_t at) { bitmap[at >> 6] |= std::uint64_t{1} << (at & 63); }

// The inverted index of one block of edges: per vertex, which edges of the block hold it.
struct Postings {
  std::vector<std::int64_t> begin;      // of the vertex's edges in `edge`, vertices + 1
  std::vector<std::int32_t> edge;       // from 0 within the block
  std::vector<std::int32_t> bitmap_of;  // number of the vertex's bitmap, or -1
  std::vector<Bitmap> bitmaps;

  Postings(const std::int64_t* indptr, const std::int32_t* indices, std::size_t vertices, std::size_t first,
           std::size_t last)
      : begin(vertices + 1), edge(static_cast<std::size_t>(indptr[last] - indptr[first])), bitmap_of(vertices, -1) {
    for (std::int64_t k = indptr[first]; k < indptr[last]; ++k) ++begin[indices[k] + 1];
    for (std::size_t v = 0; v < vertices; ++v) {
      if (static_cast<std::size_t>(begin[v + 1]) > kSparse) {
        bitmap_of[v] = static_cast<std::int32_t>(bitmaps.size());
        bitmaps.push_back({});
      }
      begin[v + 1] += begin[v];
    }
    for (std::size_t e = last; e-- > first;) {  // backwards, so that `begin` ends at each start again
      for (std::int64_t k = indptr[e]; k < indptr[e + 1]; ++k) {
        const std::int32_t v = indices[k], at = static_cast<std::int32_t>(e - first);
        if (bitmap_of[v] >= 0) set(bitmaps[bitmap_of[v]], at);
        edge[--begin[v + 1]] = at;
      }
    }
    // begin[v + 1] now holds the start of v: shift back to begin[v], with the total at the end.
    std::memmove(begin.data(), begin.data() + 1, vertices * sizeof(begin[0]));
    begin[vertices] = static_cast<std::int64_t>(edge.size());
  }
};

std::int64_t count(const Bitmap& bitmap) {
  std::int64_t total = 0;
  for (const std::uint64_t word : bitmap) total += std::popcount(word);
  return total;
}

}  // namespace

void meet_block(const std::int64_t* indptr, const std::int32_t* indices, std::size_t edges, std::size_t vertices,
                std::size_t first, std::int64_t* met) {
  const Postings postings(indptr, indices, vertices, first, std::min(edges, first + kBlock));
  for (std::size_t e = 0; e < edges; ++e) {
    Bitmap seen{};
    for (std::int64_t k = indptr[e]; k < indptr[e + 1]; ++k) {
      const std::int32_t v = indices[k], bitmap = postings.bitmap_of[v];
      if (bitmap >= 0) {
        const Bitmap& holders = postings.bitmaps[bitmap];
        for (std::size_t w = 0; w < kWords; ++w) seen[w] |= holders[w];
      } else {
        for (std::int64_t p = postings.begin[v]; p < postings.begin[v + 1]; ++p) set(seen, postings.edge[p]);
      }
    }
    met[e] += count(seen);
  }
}

void bitmap_meetings(const std::uint8_t* rows, std::size_t count, const std::uint8_t* others,
                     std::size_t other_count, std::size_t width, std::int64_t* met) {
  // Only where row a has bits can it meet another: a sparse row has few such words, and a dense one meets at once.
  struct Part {
    std::size_t at, size;
    std::uint64_t bits;
  };
  std::vector<Part> parts;
  for (std::size_t a = 0; a < count; ++a) {
    parts.clear();
    for (std::size_t at = 0; at < width; at += sizeof(std::uint64_t)) {
      Part part{at, std::min(sizeof(std::uint64_t), width - at), 0};
      std::memcpy(&part.bits, rows + a * width + at, part.size);
      if (part.bits) parts.push_back(part);
    }
    met[a] = 0;
    for (std::size_t b = 0; b < other_count; ++b) {
      const std::uint8_t* other = others + b * width;
      met[a] += std::any_of(parts.begin(), parts.end(), [other](const Part& part) {
        std::uint64_t bits = 0;
        std::memcpy(&bits, other + part.at, part.size);
        return (bits & part.bits) != 0;
      });
    }
  }
}

}  // namespace mlxhog
