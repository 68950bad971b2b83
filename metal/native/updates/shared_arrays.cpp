#include "shared_arrays.h"

#include <limits>

namespace mlxhog {
namespace {

WorkerEntry* table_of(const Bytes& table, std::uint32_t slot) {
  require(table.size() % sizeof(WorkerEntry) == 0 && reinterpret_cast<std::uintptr_t>(table.data()) % 8 == 0,
          "worker table of ", table.size(), " bytes: wanted a multiple of ", sizeof(WorkerEntry), ", 8-byte aligned");
  constexpr std::size_t kMaxSlots = std::numeric_limits<std::uint16_t>::max();  // slots that a lock word can name
  const std::size_t slots = std::min(table.size() / sizeof(WorkerEntry), kMaxSlots);
  require(slot > 0 && slot <= slots, "worker slot ", slot, ": wanted 1 to ", slots, ", the entries of the worker table");
  return reinterpret_cast<WorkerEntry*>(table.data());
}

}  // namespace

LocksObject::LocksObject(Words words, Bytes table, std::uint32_t slot, std::uint32_t generation)
    : Locks(words.data(), words.size(), table_of(table, slot), table.size() / sizeof(WorkerEntry), slot,
            generation & 0xffffu),
      words(words), table(table) {}

Mode mode_of(int mode) {
  require(mode >= 0 && mode <= 3, "write mode ", mode, ": wanted 0 (lossless), 1 (racy), 2 (cas) or 3 (in turn)");
  return static_cast<Mode>(mode);
}

Locks* locks_for(LocksObject* object, Mode mode) {
  require(!takes_locks(mode) || object != nullptr,
          "locks is None: a mode that locks (lossless, in turn) needs the arena's locks");
  require(mode != Mode::in_turn || object->turns != nullptr, "the locks have no turns: call attach_turns first");
  return object;
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

void check_parameter(std::size_t segment, std::size_t offset, std::size_t floats, std::size_t width,
                     std::optional<std::size_t> word0, const Locks* locks, Mode mode) {
  require(offset <= segment && floats <= segment - offset, floats, " floats at offset ", offset,
          " do not fit the segment of ", segment);
  require(width != 0 && floats % width == 0, floats, " floats are not rows of width ", width);
  if (!takes_locks(mode)) return;
  const std::size_t words = locks->size(), first = word0 ? *word0 : offset / kStripe;
  const std::size_t n = word0 ? floats / width : stripes(offset + floats) - first;
  require(first <= words && n <= words - first, n, " lock words from ", first, " on: there are ", words);
}

UpdateTarget update_target(Locks* locks, Mode mode, const Flat& flat, std::size_t offset, std::size_t values,
               const std::optional<RowsOf>& rows_of, bool distinct) {
  if (!rows_of) {
    check_parameter(flat.size(), offset, values, 1, std::nullopt, locks, mode);
    return {locks, mode, offset, values};
  }
  const auto& [index, width, word0, floats] = *rows_of;
  check_parameter(flat.size(), offset, floats, width, word0, locks, mode);
  const std::size_t rows = values / width, all = floats / width;
  require(values % width == 0, values, " floats are not rows of width ", width);
  require(index ? index->size() == rows : rows <= all, "values has ", rows, " rows; wanted ",
          index ? index->size() : all);
  UpdateTarget target{locks, mode, offset, floats, width, word0 ? static_cast<std::ptrdiff_t>(*word0) : kStripes, rows, {}};
  if (index) target.index = checked_index("row", *index, all, distinct);
  return target;
}

}  // namespace mlxhog
