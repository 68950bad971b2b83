#include "shared_arrays.h"

#include <limits>
#include <utility>

namespace mlxhog {
namespace {

std::string text(std::size_t n) { return std::to_string(n); }

[[noreturn]] void refuse(const std::string& why) { throw nb::value_error(why.c_str()); }

WorkerEntry* table_of(const LocksObject::Table& table, std::uint32_t slot) {
  if (table.size() % sizeof(WorkerEntry) != 0 || reinterpret_cast<std::uintptr_t>(table.data()) % 8 != 0) {
    refuse("worker table of " + text(table.size()) + " bytes: wanted a multiple of 512, 8-byte aligned");
  }
  constexpr std::size_t kMost = std::numeric_limits<std::uint16_t>::max();  // slots that a lock word can name
  const std::size_t slots = std::min(table.size() / sizeof(WorkerEntry), kMost);
  if (slot == 0 || slot > slots) {
    refuse("worker slot " + text(slot) + ": wanted 1 to " + text(slots) + ", the entries of the worker table");
  }
  return reinterpret_cast<WorkerEntry*>(table.data());
}

}  // namespace

LocksObject::LocksObject(Words words_array, Table table_array, std::uint32_t slot, std::uint32_t generation)
    : words(words_array), table(table_array),
      locks(words.data(), words.size(), table_of(table, slot), table.size() / sizeof(WorkerEntry), slot,
            generation & 0xffffu) {}

Mode mode_of(int mode) {
  if (mode < 0 || mode > 3) {
    refuse("write mode " + std::to_string(mode) + ": wanted 0 (lossless), 1 (racy), 2 (cas) or 3 (in turn)");
  }
  return static_cast<Mode>(mode);
}

Locks* locks_for(LocksObject* object, Mode mode) {
  if (takes_locks(mode) && object == nullptr) {
    refuse("locks is None: a mode that locks (lossless, in turn) needs the arena's locks");
  }
  if (mode == Mode::in_turn && object->locks.turns == nullptr) refuse("the locks have no turns: call follow first");
  if (object != nullptr) return &object->locks;
  return nullptr;
}

void check_dense(const Flat& flat, std::size_t offset, std::size_t count, const Locks* locks, Mode mode) {
  if (offset > flat.size() || count > flat.size() - offset) {
    refuse(text(count) + " floats at offset " + text(offset) + " do not fit the segment of " + text(flat.size()));
  }
  if (takes_locks(mode) && stripes(offset + count) > locks->size()) {
    refuse("the update reaches stripe " + text(stripes(offset + count) - 1) + ", but there are only " +
           text(locks->size()) + " lock words");
  }
}

RowPlace check_rows(const Flat& flat, std::size_t offset, std::size_t width, std::optional<std::size_t> word0,
                    const std::optional<IndexArray>& index, const Values& values, const Locks* locks, Mode mode,
                    bool distinct) {
  if (width == 0 || values.size() % width != 0) {
    refuse("values of " + text(values.size()) + " floats are not rows of width " + text(width));
  }
  if (word0 && *word0 > static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max())) {
    refuse("lock word " + text(*word0) + " of the first row: no array has this word");
  }
  const std::size_t rows = values.size() / width;
  if (index && index->size() != rows) {
    refuse("index names " + text(index->size()) + " rows, values has " + text(rows));
  }
  if (offset > flat.size()) refuse("offset " + text(offset) + " is outside the segment of " + text(flat.size()));
  std::size_t limit = (flat.size() - offset) / width;  // rows that fit the segment and the lock words
  if (takes_locks(mode) && word0) {
    limit = std::min(limit, locks->size() - std::min(*word0, locks->size()));
  } else if (takes_locks(mode)) {
    const std::size_t guarded = locks->size() * kStripe;
    limit = std::min(limit, (guarded - std::min(offset, guarded)) / width);
  }
  if (!index && rows > limit) refuse(text(rows) + " rows, but the segment and its locks hold " + text(limit));
  std::vector<std::int32_t> at;
  if (index) {
    at.assign(index->data(), index->data() + rows);
    for (std::size_t k = 0; k < rows; ++k) {
      if (at[k] < 0 || static_cast<std::size_t>(at[k]) >= limit) {
        refuse("row " + std::to_string(at[k]) + " is outside the " + text(limit) + " rows of the parameter");
      }
      if (distinct && k > 0 && at[k] <= at[k - 1]) {
        refuse("rows must ascend without duplicates for an optimizer step: sum duplicate rows first");
      }
    }
  }
  return {offset, width, rows, word0 ? static_cast<std::ptrdiff_t>(*word0) : kStripes, !index, std::move(at)};
}

}  // namespace mlxhog
