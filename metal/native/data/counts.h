// Counted n-grams of a text of ids: how often each id follows each context, for contexts of up to K ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mlxhog::counts {

constexpr int kCountBuckets = 12, kSuccessorBuckets = 8;
constexpr int kBuckets = kCountBuckets * kSuccessorBuckets;

// Contexts are a tree in breadth-first order: the root is the empty context, and a child of a context has one more,
// older id. The children of a context are contiguous and ascend by that id; so do its successors, the ids that follow
// it. The end of either range is the start of the next context's; a last context without meaning closes the array.
struct Context {
  std::uint32_t id;          // the oldest one
  std::uint32_t successors;  // the first
  std::uint32_t children;    // the first
  std::uint32_t total;       // occurrences
};

struct Successor {
  std::uint32_t id, count;
};

struct Counts {
  std::vector<Context> contexts;
  std::vector<Successor> successors;
  int orders;  // K
};

// Counts ids[begins[r] + K .. begins[r + 1]) of every run r; the first K ids of a run are only contexts. K is `orders`,
// or less: the key of an occurrence has K + 1 symbols of b bits each, (K + 1) b <= 64, where a symbol is the rank of an
// id among those that occur, and 2^b is at least their number. Ids lie in [0, vocab).
Counts count(const std::int32_t* ids, const std::int64_t* begins, std::size_t runs, std::size_t vocab, int orders);

// A table in memory that other processes share, read-only.
struct Table {
  const Context* contexts;
  const Successor* successors;
  int orders;
};

// For each of m positions of `ids`, and each order k = 0..K: ml[k m + j] is the share of the id at positions[j] among
// the successors of the k ids before it, bucket[k m + j] the bucket of that context, -1 if it has no successor. With
// `without_itself` the occurrence at the position is not counted; false if it was not counted in the first place.
bool evidence(const Table& table, const std::int32_t* ids, const std::int64_t* positions, std::size_t m,
              bool without_itself, float* ml, std::int16_t* bucket);

}  // namespace mlxhog::counts
