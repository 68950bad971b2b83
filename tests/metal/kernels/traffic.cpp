// Counts the memory that a kernel touches: what -fsanitize=thread calls at every access, implemented by ourselves
// instead of by the sanitizer. Of each watched array: its distinct bytes that were read and written, as if every cache
// were large enough, and the bytes of all loads and stores, as if there were none. Threadgroup memory is one more
// array, the last. Other memory does not count.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "shim/runtime.h"

namespace {

struct Array {
  std::uintptr_t start = 0;
  std::vector<bool> read, written;
  std::size_t loaded = 0, stored = 0;
};

std::vector<Array> arrays;

struct Variable {
  std::uintptr_t start;
  std::size_t bytes;
};

std::vector<Variable> variables;  // in threadgroup memory
Array group;

void note(const volatile void* at, std::size_t size, bool reads, bool writes) {
  const auto address = reinterpret_cast<std::uintptr_t>(at);
  for (Array& array : arrays) {
    if (address < array.start || address >= array.start + array.read.size()) continue;
    for (std::size_t k = address - array.start; k < address - array.start + size; ++k) {
      if (reads) array.read[k] = true;
      if (writes) array.written[k] = true;
    }
    array.loaded += reads * size;
    array.stored += writes * size;
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

// In place of `poison_once` in an instrumented kernel, which calls it for every variable in threadgroup memory.
namespace metal_host {
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

void traffic_forget() { arrays.clear(), variables.clear(), group = {}; }

void traffic_watch(void* start, std::size_t size) {
  arrays.push_back({reinterpret_cast<std::uintptr_t>(start), std::vector<bool>(size), std::vector<bool>(size)});
}

std::size_t traffic_read(std::size_t k) { return count(arrays[k].read); }
std::size_t traffic_written(std::size_t k) { return count(arrays[k].written); }
std::size_t traffic_loaded(std::size_t k) { return (k < arrays.size() ? arrays[k] : group).loaded; }
std::size_t traffic_stored(std::size_t k) { return (k < arrays.size() ? arrays[k] : group).stored; }

// -- for the instrumented kernel -------------------------------------------------------------------------

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define ACCESS(size)                                                            \
  void __tsan_read##size(void* at) { note(at, size, true, false); }             \
  void __tsan_write##size(void* at) { note(at, size, false, true); }            \
  void __tsan_volatile_read##size(void* at) { note(at, size, true, false); }    \
  void __tsan_volatile_write##size(void* at) { note(at, size, false, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#define UNALIGNED(size)                                                             \
  void __tsan_unaligned_read##size(void* at) { note(at, size, true, false); }       \
  void __tsan_unaligned_write##size(void* at) { note(at, size, false, true); }
UNALIGNED(2)
UNALIGNED(4)
UNALIGNED(8)
UNALIGNED(16)
void __tsan_read_range(void* at, std::size_t size) { note(at, size, true, false); }
void __tsan_write_range(void* at, std::size_t size) { note(at, size, false, true); }

using Word = std::uint32_t;
Word __tsan_atomic32_load(const volatile Word* at, int) {
  note(at, sizeof *at, true, false);
  return __atomic_load_n(at, __ATOMIC_RELAXED);
}
void __tsan_atomic32_store(volatile Word* at, Word value, int) {
  note(at, sizeof *at, false, true);
  __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
#define FETCH(name, op)                                                          \
  Word __tsan_atomic32_##name(volatile Word* at, Word value, int) {              \
    note(at, sizeof *at, true, true);                                            \
    return __atomic_##op(at, value, __ATOMIC_RELAXED);                           \
  }
FETCH(fetch_add, fetch_add)
FETCH(fetch_sub, fetch_sub)
FETCH(fetch_and, fetch_and)
FETCH(fetch_or, fetch_or)
FETCH(fetch_xor, fetch_xor)
FETCH(exchange, exchange_n)
#define SWAP(name, weak)                                                                                  \
  int __tsan_atomic32_compare_exchange_##name(volatile Word* at, Word* expected, Word value, int, int) {  \
    note(at, sizeof *at, true, true);                                                                     \
    return __atomic_compare_exchange_n(at, expected, value, weak, __ATOMIC_RELAXED, __ATOMIC_RELAXED);    \
  }
SWAP(weak, true)
SWAP(strong, false)

}  // extern "C"
