#include "counts.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

namespace mlxhog::counts {
namespace {

using Key = std::uint64_t;

// Least significant digit first; one pass over the keys counts all digits.
void radix_sort(std::vector<Key>& keys, int bits) {
  constexpr int kDigit = 11;
  constexpr Key kMask = (Key{1} << kDigit) - 1;
  const int passes = (bits + kDigit - 1) / kDigit;
  std::vector<std::array<std::size_t, kMask + 1>> starts(passes);
  for (const Key key : keys) {
    for (int p = 0; p < passes; ++p) ++starts[p][(key >> (p * kDigit)) & kMask];
  }
  std::vector<Key> sorted(keys.size());
  for (int p = 0; p < passes; ++p) {
    std::size_t before = 0;
    for (std::size_t& start : starts[p]) before += std::exchange(start, before);
    for (const Key key : keys) sorted[starts[p][(key >> (p * kDigit)) & kMask]++] = key;
    keys.swap(sorted);
  }
}

// The contexts of one length, and the distinct keys (context, next) with their counts.
struct Level {
  std::vector<Key> contexts;
  std::vector<Context> nodes;
  std::vector<Successor> successors;
};

Level level_of(const std::vector<Key>& keys, const std::vector<std::uint32_t>& counts, int bits,
               const std::vector<std::uint32_t>& id_of, const Level& longer) {
  const Key mask = (Key{1} << bits) - 1;
  Level level;
  std::size_t child = 0;
  for (std::size_t k = 0; k < keys.size(); ++k) {
    const Key context = keys[k] >> bits;
    if (level.contexts.empty() || level.contexts.back() != context) {
      level.contexts.push_back(context);
      level.nodes.push_back({id_of[context & mask], static_cast<std::uint32_t>(k), static_cast<std::uint32_t>(child), 0});
      while (child < longer.contexts.size() && longer.contexts[child] >> bits == context) ++child;
    }
    level.nodes.back().total += counts[k];
    level.successors.push_back({id_of[keys[k] & mask], counts[k]});
  }
  return level;
}

// Drops the oldest symbol of every context: neighbours with the same rest become one, ascending by the next symbol.
void shorten(std::vector<Key>& keys, std::vector<std::uint32_t>& counts, int bits) {
  const Key mask = (Key{1} << bits) - 1;
  std::vector<std::pair<Key, std::uint32_t>> group;
  std::size_t n = 0;
  for (std::size_t begin = 0, end = 0; begin < keys.size(); begin = end) {
    const Key rest = keys[begin] >> (2 * bits - 1) >> 1;  // 2 * bits may be 64
    group.clear();
    for (; end < keys.size() && keys[end] >> (2 * bits - 1) >> 1 == rest; ++end)
      group.emplace_back(rest << bits | (keys[end] & mask), counts[end]);
    std::sort(group.begin(), group.end());
    for (const auto& [key, count] : group) {  // n stays behind what is read
      if (n > 0 && keys[n - 1] == key) counts[n - 1] += count;
      else keys[n] = key, counts[n++] = count;
    }
  }
  keys.resize(n);
  counts.resize(n);
}

// The context of the newest `length` ids before `end`, if it occurs; fills path[0..] with those of 0, 1, ... ids.
int path(const Table& table, const std::int32_t* begin, const std::int32_t* end, const Context** path) {
  const Context* context = path[0] = table.contexts;
  int length = 0;
  while (length < table.orders && end - begin > length) {
    const std::uint32_t id = static_cast<std::uint32_t>(end[-1 - length]);
    const Context* last = table.contexts + context[1].children;
    context = std::lower_bound(table.contexts + context->children, last, id,
                               [](const Context& c, std::uint32_t wanted) { return c.id < wanted; });
    if (context == last || context->id != id) break;
    path[++length] = context;
  }
  return length;
}

int bucket_of(std::uint32_t count, std::uint32_t successors) {
  return std::min<int>(std::bit_width(count), kCountBuckets) * kSuccessorBuckets - kSuccessorBuckets +
         std::min<int>(std::bit_width(successors), kSuccessorBuckets) - 1;
}

}  // namespace

Counts count(const std::int32_t* ids, const std::int64_t* begins, std::size_t runs, std::size_t vocab, int orders) {
  std::vector<std::uint32_t> symbol(vocab), id_of;
  for (std::int64_t i = begins[0]; i < begins[runs]; ++i) symbol[ids[i]] = 1;
  for (std::size_t id = 0; id < vocab; ++id) {
    if (std::exchange(symbol[id], static_cast<std::uint32_t>(id_of.size())))
      id_of.push_back(static_cast<std::uint32_t>(id));
  }
  const int bits = std::max<int>(1, std::bit_width(id_of.empty() ? 0 : id_of.size() - 1));
  orders = std::min(orders, 64 / bits - 1);
  std::vector<Key> keys;
  keys.reserve(static_cast<std::size_t>(begins[runs] - begins[0]));
  for (std::size_t r = 0; r < runs; ++r) {
    Key context = 0;
    for (std::int64_t i = begins[r]; i < begins[r + 1]; ++i) {
      const Key next = symbol[ids[i]];
      if (i >= begins[r] + orders) keys.push_back(context << bits | next);
      context = context >> bits | next << (bits * (orders - 1));
    }
  }
  radix_sort(keys, bits * (orders + 1));
  std::vector<std::uint32_t> counts;
  std::size_t n = 0;
  for (std::size_t k = 0; k < keys.size(); ++k) {
    if (n > 0 && keys[n - 1] == keys[k]) ++counts[n - 1];
    else keys[n++] = keys[k], counts.push_back(1);
  }
  keys.resize(n);
  std::vector<Level> levels(static_cast<std::size_t>(orders) + 2);  // the last has nothing
  for (int k = orders; k >= 0; --k) {
    levels[k] = level_of(keys, counts, bits, id_of, levels[k + 1]);
    levels[k + 1].contexts = {};
    if (k > 0) shorten(keys, counts, bits);
  }
  Counts all{{}, {}, orders};
  for (int k = 0; k <= orders; ++k) {
    const auto children = static_cast<std::uint32_t>(all.contexts.size() + levels[k].nodes.size());
    const auto successors = static_cast<std::uint32_t>(all.successors.size());
    for (const Context& node : levels[k].nodes)
      all.contexts.push_back({node.id, node.successors + successors, node.children + children, node.total});
    all.successors.insert(all.successors.end(), levels[k].successors.begin(), levels[k].successors.end());
    levels[k] = {};
  }
  const auto ends = static_cast<std::uint32_t>(all.contexts.size());
  all.contexts.push_back({0, static_cast<std::uint32_t>(all.successors.size()), ends, 0});
  return all;
}

bool evidence(const Table& table, const std::int32_t* ids, const std::int64_t* positions, std::size_t m,
              bool without_itself, float* ml, std::int16_t* bucket) {
  std::vector<const Context*> found(static_cast<std::size_t>(table.orders) + 1);
  for (std::size_t j = 0; j < m; ++j) {
    const std::int32_t* at = ids + positions[j];
    const int longest = path(table, ids, at, found.data());
    for (int k = 0; k <= table.orders; ++k) {
      float& share = ml[k * m + j];
      std::int16_t& place = bucket[k * m + j];
      share = 0, place = -1;
      if (k > longest) {
        if (without_itself) return false;
        continue;
      }
      const Context& context = *found[k];
      const Successor* first = table.successors + context.successors;
      const Successor* last = table.successors + (&context)[1].successors;
      const auto id = static_cast<std::uint32_t>(*at);
      const Successor* own =
          std::lower_bound(first, last, id, [](const Successor& s, std::uint32_t wanted) { return s.id < wanted; });
      std::uint32_t count = own != last && own->id == id ? own->count : 0, total = context.total;
      auto distinct = static_cast<std::uint32_t>(last - first);
      if (without_itself) {
        if (count == 0) return false;
        distinct -= --count == 0;
        --total;
      }
      if (total == 0) continue;
      share = static_cast<float>(count) / static_cast<float>(total);
      place = static_cast<std::int16_t>(bucket_of(total, distinct));
    }
  }
  return true;
}

}  // namespace mlxhog::counts
