// Who meets whom: counts of intersecting supports of sparse rows. Arguments are checked here, the GIL is released.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "../updates/shared_arrays.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mlxhog {
namespace {

// Edges are met in blocks of this many, so that the bitmaps of a block stay in the cache.
constexpr std::size_t kBlock = 8192;
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

// met[e] += how many of the edges first .. first + kBlock - 1 share a vertex with edge e, itself included; an edge
// without vertices meets none. Edge e holds indices[indptr[e] .. indptr[e + 1]), distinct, in [0, vertices).
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

using Pointers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void edge_degrees(const Pointers& indptr, const Indices& indices, std::size_t n, Counts met) {
  require(indptr.size() != 0 && indptr(0) == 0, "indptr must begin with 0");
  const std::size_t edges = indptr.size() - 1;
  for (std::size_t e = 0; e < edges; ++e) require(indptr(e + 1) >= indptr(e), "indptr must never fall");
  require(static_cast<std::size_t>(indptr(edges)) == indices.size(), "indptr must end at the number of indices");
  for (std::size_t k = 0; k < indices.size(); ++k) {
    require(indices(k) >= 0 && static_cast<std::size_t>(indices(k)) < n, "an index is outside [0, n)");
  }
  require(met.size() == edges, "met has ", met.size(), " elements, wanted ", edges);
  // Vertices after the last named one have no conflicts: a huge n costs no memory.
  const auto last = std::max_element(indices.data(), indices.data() + indices.size());
  n = indices.size() == 0 ? 0 : static_cast<std::size_t>(*last) + 1;
  std::fill(met.data(), met.data() + edges, 0);
  for (std::size_t first = 0; first < edges; first += kBlock) {
    {
      nb::gil_scoped_release nogil;
      meet_block(indptr.data(), indices.data(), edges, n, first, met.data());
    }
    if (PyErr_CheckSignals() != 0) throw nb::python_error();  // a large data set takes minutes
  }
}

}  // namespace
}  // namespace mlxhog

void bind_theory(nb::module_& m) {
  m.def("edge_degrees", &mlxhog::edge_degrees, "indptr"_a.noconvert(), "indices"_a.noconvert(), "n"_a, "met"_a.noconvert(),
        "Edges that each edge of a hypergraph meets, itself included.");
}
