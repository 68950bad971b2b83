#include "shared_arrays.h"

#include <limits>
#include <utility>

namespace mlxhog {
namespace {

WorkerEntry* table_of(const LocksObject::Table& table, std::uint32_t slot) {
  require(table.size() % sizeof(WorkerEntry) == 0 && reinterpret_cast<std::uintptr_t>(table.data()) % 8 == 0,
          "worker table of ", table.size(), " bytes: wanted a multiple of ", sizeof(WorkerEntry), ", 8-byte aligned");
  constexpr std::size_t kMost = std::numeric_limits<std::uint16_t>::max();  // slots that a lock word can name
  const std::size_t slots = std::min(table.size() / sizeof(WorkerEntry), kMost);
  require(slot > 0 && slot <= slots, "worker slot ", slot, ": wanted 1 to ", slots, ", the entries of the worker table");
  return reinterpret_cast<WorkerEntry*>(table.data());
}

}  // namespace

LocksObject::LocksObject(Words words_array, Table table_array, std::uint32_t slot, std::uint32_t generation)
    : words(words_array), table(table_array),
      locks(words.data(), words.size(), table_of(table, slot), table.size() / sizeof(WorkerEntry), slot,
            generation & 0xffffu) {}

Mode mode_of(int mode) {
  require(mode >= 0 && mode <= 3, "write mode ", mode, ": wanted 0 (lossless), 1 (racy), 2 (cas) or 3 (in turn)");
  return static_cast<Mode>(mode);
}

Locks* locks_for(LocksObject* object, Mode mode) {
  require(!takes_locks(mode) || object != nullptr,
          "locks is None: a mode that locks (lossless, in turn) needs the arena's locks");
  require(mode != Mode::in_turn || object->locks.turns != nullptr, "the locks have no turns: call follow first");
  return object != nullptr ? &object->locks : nullptr;
}

void check_dense(const Flat& flat, std::size_t offset, std::size_t count, const Locks* locks, Mode mode) {
  require(offset <= flat.size() && count <= flat.size() - offset, count, " floats at offset ", offset,
          " do not fit the segment of ", flat.size());
  require(!takes_locks(mode) || stripes(offset + count) <= locks->size(), "the update reaches stripe ",
          stripes(offset + count) - 1, ", but there are only ", takes_locks(mode) ? locks->size() : 0, " lock words");
}

std::vector<std::int32_t> checked_index(const char* what, const IndexArray& array, std::size_t end, bool ascending) {
  std::vector<std::int32_t> index(array.data(), array.data() + array.size());
  for (std::size_t k = 0; k < index.size(); ++k) {
    require(index[k] >= 0 && static_cast<std::size_t>(index[k]) < end, what, " ", index[k], " is outside the ", end,
            " of the parameter");
    require(!ascending || k == 0 || index[k] > index[k - 1], what, " ", index[k], " at place ", k,
            ": wanted ascending ones, each once");
  }
  return index;
}

RowPlace check_rows(const Flat& flat, std::size_t offset, std::size_t width, std::optional<std::size_t> word0,
                    const std::optional<IndexArray>& index, const Values& values, const Locks* locks, Mode mode,
                    bool distinct) {
  require(width != 0 && values.size() % width == 0, "values of ", values.size(), " floats are not rows of width ",
          width);
  require(!word0 || *word0 <= static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max()), "lock word ",
          word0.value_or(0), " of the first row: no array has this word");
  const std::size_t rows = values.size() / width;
  require(!index || index->size() == rows, "index names ", index ? index->size() : 0, " rows, values has ", rows);
  require(offset <= flat.size(), "offset ", offset, " is outside the segment of ", flat.size());
  std::size_t limit = (flat.size() - offset) / width;  // rows that fit the segment and the lock words
  if (takes_locks(mode) && word0) {
    limit = std::min(limit, locks->size() - std::min(*word0, locks->size()));
  } else if (takes_locks(mode)) {
    const std::size_t guarded = locks->size() * kStripe;
    limit = std::min(limit, (guarded - std::min(offset, guarded)) / width);
  }
  require(index || rows <= limit, rows, " rows, but the segment and its locks hold ", limit);
  return {offset, width, rows, word0 ? static_cast<std::ptrdiff_t>(*word0) : kStripes, !index,
          index ? checked_index("row", *index, limit, distinct) : std::vector<std::int32_t>()};
}

}  // namespace mlxhog
