// Counts the memory that a kernel touches: what -fsanitize=thread calls at every access, implemented by ourselves
// instead of by the sanitizer. Of each watched array: its distinct bytes that were read and written, as if every cache
// were large enough, the bytes of all loads and stores, as if there were none, and the cache lines of each access of a
// simd-group. Threadgroup memory is one more array, the last, without lines. Other memory does not count.
//
// An access of a simd-group is what its threads touch by one instruction between two places where they meet: the n-th
// time of each thread, together. On a GPU they run it together, unless branches part them.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <utility>
#include <vector>

#include "shim/launch.h"
#include "shim/runtime.h"

namespace {

constexpr std::size_t line_bytes = 128;  // of Apple's GPUs

struct Array {
  std::uintptr_t start = 0;
  std::vector<bool> read, written;
  std::size_t loaded = 0, stored = 0, accesses = 0, lines = 0;
};

std::vector<Array> arrays;

struct Instruction {
  const void* at;
  std::size_t n;  // how often the thread has run it since its simd-group met
  bool operator==(const Instruction&) const = default;
};
struct Hash {
  std::size_t operator()(const Instruction& one) const {
    return reinterpret_cast<std::uintptr_t>(one.at) * 31 + one.n;
  }
};
struct Access {
  std::size_t array;
  std::vector<std::size_t> lines;
};
struct Simdgroup {
  std::size_t threadgroup = 0, meetings = 0;
  std::unordered_map<Instruction, Access, Hash> accesses;  // since it met
};
struct Lane {
  std::size_t meetings = 0;
  std::unordered_map<const void*, std::size_t> times;  // of each instruction, since its simd-group met
};

std::vector<Simdgroup> simdgroups;  // of a threadgroup
std::vector<Lane> lanes;
std::size_t current = 0;  // index of the thread that runs
metal_host::Body watched_body = nullptr;

void count_accesses(Simdgroup& simdgroup) {
  for (const auto& [_, access] : simdgroup.accesses) {
    arrays[access.array].accesses += 1;
    arrays[access.array].lines += access.lines.size();
  }
  simdgroup.accesses.clear();
}

void note_lines(const void* instruction, std::size_t array, std::size_t first, std::size_t size) {
  Lane& lane = lanes[current];
  Simdgroup& simdgroup = simdgroups[current / metal_host::simd_width];
  if (simdgroup.meetings != lane.meetings) {  // so all of its threads have come to the meeting before
    count_accesses(simdgroup);
    simdgroup.meetings = lane.meetings;
  }
  Access& access = simdgroup.accesses[{instruction, lane.times[instruction]++}];
  access.array = array;
  for (std::size_t line = first / line_bytes; line <= (first + size - 1) / line_bytes; ++line) {
    if (std::find(access.lines.rbegin(), access.lines.rend(), line) == access.lines.rend()) access.lines.push_back(line);
  }
}

void run_watched(void* const* buffers, const metal_host::Thread& self) {
  const auto& at = self.threadgroup_position_in_grid;
  const auto& groups = self.threadgroups_per_grid;
  current = self.thread_index_in_threadgroup;
  if (lanes.size() <= current) lanes.resize(current + 1);
  lanes[current] = {};
  if (simdgroups.size() <= current / metal_host::simd_width) simdgroups.resize(current / metal_host::simd_width + 1);
  Simdgroup& simdgroup = simdgroups[current / metal_host::simd_width];
  const std::size_t threadgroup = (std::size_t(at.z) * groups.y + at.y) * groups.x + at.x + 1;
  if (simdgroup.threadgroup != threadgroup) {
    count_accesses(simdgroup);
    simdgroup.threadgroup = threadgroup;
    simdgroup.meetings = 0;
  }
  watched_body(buffers, self);
}

// What a thread does where it meets others, which run meanwhile.
template <typename Meet>
auto meeting(Meet meet) {
  const std::size_t self = current;
  lanes[self].meetings += 1;
  lanes[self].times.clear();
  struct Back {
    std::size_t self;
    ~Back() { current = self; }
  } back{self};
  return meet();
}

struct Variable {
  std::uintptr_t start;
  std::size_t bytes;
};

std::vector<Variable> variables;  // in threadgroup memory
Array group;

void note(const void* instruction, const volatile void* at, std::size_t size, bool reads, bool writes) {
  const auto address = reinterpret_cast<std::uintptr_t>(at);
  for (Array& array : arrays) {
    if (address < array.start || address >= array.start + array.read.size()) continue;
    for (std::size_t k = address - array.start; k < address - array.start + size; ++k) {
      if (reads) array.read[k] = true;
      if (writes) array.written[k] = true;
    }
    array.loaded += reads * size;
    array.stored += writes * size;
    note_lines(instruction, &array - arrays.data(), address - array.start, size);
    return;
  }
  for (const Variable& variable : variables) {
    if (address < variable.start || address >= variable.start + variable.bytes) continue;
    group.loaded += reads * size;
    group.stored += writes * size;
  }
}

std::size_t count(const std::vector<bool>& bits) {
  std::size_t n = 0;
  for (const bool bit : bits) n += bit;
  return n;
}

}  // namespace

// In place of the functions of these names without `watched_` in an instrumented kernel.
namespace metal_host {
int watched_run(Body body, void* const* buffers, const Launch& launch) {
  watched_body = body;
  const int failed = run(run_watched, buffers, launch);
  for (Simdgroup& simdgroup : simdgroups) count_accesses(simdgroup);
  return failed;
}

void watched_wait_for_group(Place place) {
  meeting([&] { wait_for_group(place); });
}
void watched_wait_for_simdgroup(Place place) {
  meeting([&] { wait_for_simdgroup(place); });
}
Values watched_show(const void* value, uint bytes, Place place) {
  return meeting([&] { return show(value, bytes, place); });
}

// Called for every variable in threadgroup memory.
void watched_poison_once(void* variable, std::size_t bytes, ulong& filled_for) {
  const auto start = reinterpret_cast<std::uintptr_t>(variable);
  bool known = false;
  for (const Variable& other : variables) known |= other.start == start;
  if (!known) variables.push_back({start, bytes});
  poison_once(variable, bytes, filled_for);
}
}  // namespace metal_host

extern "C" {

// -- for Python ------------------------------------------------------------------------------------------

void traffic_forget() { arrays.clear(), variables.clear(), simdgroups.clear(), lanes.clear(), group = {}; }

void traffic_watch(void* start, std::size_t size) {
  Array array;
  array.start = reinterpret_cast<std::uintptr_t>(start);
  array.read.resize(size), array.written.resize(size);
  arrays.push_back(std::move(array));
}

std::size_t traffic_read(std::size_t k) { return count(arrays[k].read); }
std::size_t traffic_written(std::size_t k) { return count(arrays[k].written); }
std::size_t traffic_loaded(std::size_t k) { return (k < arrays.size() ? arrays[k] : group).loaded; }
std::size_t traffic_stored(std::size_t k) { return (k < arrays.size() ? arrays[k] : group).stored; }
std::size_t traffic_accesses(std::size_t k) { return (k < arrays.size() ? arrays[k] : group).accesses; }
std::size_t traffic_lines(std::size_t k) { return (k < arrays.size() ? arrays[k] : group).lines; }
std::size_t traffic_group_bytes() {
  std::size_t n = 0;
  for (const Variable& variable : variables) n += variable.bytes;
  return n;
}

// -- for the instrumented kernel -------------------------------------------------------------------------

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// With the address of the instruction.
#define NOTE(at, size, reads, writes) note(__builtin_return_address(0), at, size, reads, writes)
#define ACCESS(size)                                                           \
  void __tsan_read##size(void* at) { NOTE(at, size, true, false); }            \
  void __tsan_write##size(void* at) { NOTE(at, size, false, true); }           \
  void __tsan_volatile_read##size(void* at) { NOTE(at, size, true, false); }   \
  void __tsan_volatile_write##size(void* at) { NOTE(at, size, false, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#define UNALIGNED(size)                                                         \
  void __tsan_unaligned_read##size(void* at) { NOTE(at, size, true, false); }   \
  void __tsan_unaligned_write##size(void* at) { NOTE(at, size, false, true); }
UNALIGNED(2)
UNALIGNED(4)
UNALIGNED(8)
UNALIGNED(16)
void __tsan_read_range(void* at, std::size_t size) { NOTE(at, size, true, false); }
void __tsan_write_range(void* at, std::size_t size) { NOTE(at, size, false, true); }

using Word = std::uint32_t;
Word __tsan_atomic32_load(const volatile Word* at, int) {
  NOTE(at, sizeof *at, true, false);
  return __atomic_load_n(at, __ATOMIC_RELAXED);
}
void __tsan_atomic32_store(volatile Word* at, Word value, int) {
  NOTE(at, sizeof *at, false, true);
  __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
#define FETCH(name, op)                                              \
  Word __tsan_atomic32_##name(volatile Word* at, Word value, int) {  \
    NOTE(at, sizeof *at, true, true);                                \
    return __atomic_##op(at, value, __ATOMIC_RELAXED);               \
  }
FETCH(fetch_add, fetch_add)
FETCH(fetch_sub, fetch_sub)
FETCH(fetch_and, fetch_and)
FETCH(fetch_or, fetch_or)
FETCH(fetch_xor, fetch_xor)
FETCH(exchange, exchange_n)
#define SWAP(name, weak)                                                                                  \
  int __tsan_atomic32_compare_exchange_##name(volatile Word* at, Word* expected, Word value, int, int) {  \
    NOTE(at, sizeof *at, true, true);                                                                     \
    return __atomic_compare_exchange_n(at, expected, value, weak, __ATOMIC_RELAXED, __ATOMIC_RELAXED);    \
  }
SWAP(weak, true)
SWAP(strong, false)

}  // extern "C"
