// Metal's atomics that our kernels use: relaxed loads, stores and adds of 32-bit words in device memory. Left out on
// purpose, so that using them does not compile: what no Apple GPU has (other orders, 64-bit words), and
// compare-exchange on floats (Metal compares them as floats, so a NaN never matches itself and the loop never ends).
#pragma once

#include "shim/runtime.h"
#include "shim/types.h"

namespace metal {

enum memory_order { memory_order_relaxed };

template <typename T>
struct atomic {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, uint>, "atomics of float and uint only");
  T word;
};
using atomic_float = atomic<float>;
using atomic_uint = atomic<uint>;

template <typename T>
T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
  metal_emulator::race_point();
  T value;
  __atomic_load(&object->word, &value, __ATOMIC_RELAXED);
  return value;
}

template <typename T>
void atomic_store_explicit(volatile atomic<T>* object, std::type_identity_t<T> value, memory_order) {
  metal_emulator::race_point();
  __atomic_store(&object->word, &value, __ATOMIC_RELAXED);
}

// One indivisible addition on the GPU. A CPU has none of floats; the loop over bits means the same.
template <typename T>
T atomic_fetch_add_explicit(volatile atomic<T>* object, std::type_identity_t<T> operand, memory_order) {
  metal_emulator::race_point();
  auto* bits = reinterpret_cast<volatile uint*>(&object->word);
  uint old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old, std::bit_cast<uint>(static_cast<T>(std::bit_cast<T>(old) + operand)),
                                      true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<T>(old);
}

}  // namespace metal
