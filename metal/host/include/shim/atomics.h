// Metal's atomics as every Apple GPU has them: 32-bit words in device memory, relaxed order.
// Left out on purpose, so that using them does not compile: other orders, 64-bit words, minimum and
// maximum of floats, and compare-exchange on floats (Metal compares them as floats, so a NaN never
// matches itself and the loop never ends).
#pragma once

#include "shim/runtime.h"
#include "shim/types.h"

namespace metal {

enum memory_order { memory_order_relaxed };

template <typename T>
struct atomic {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, int> || std::is_same_v<T, uint>,
                "Apple GPUs have atomics of float, int and uint only");
  T word;
};
using atomic_float = atomic<float>;
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;

template <typename T>
T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
  metal_host::race_point();
  T value;
  __atomic_load(&object->word, &value, __ATOMIC_RELAXED);
  return value;
}

template <typename T>
void atomic_store_explicit(volatile atomic<T>* object, std::type_identity_t<T> value, memory_order) {
  metal_host::race_point();
  __atomic_store(&object->word, &value, __ATOMIC_RELAXED);
}

template <typename T>
T atomic_exchange_explicit(volatile atomic<T>* object, std::type_identity_t<T> value, memory_order) {
  metal_host::race_point();
  T old;
  __atomic_exchange(&object->word, &value, &old, __ATOMIC_RELAXED);
  return old;
}

// May fail although the word is as expected, as Metal says; chaos mode makes use of that.
template <typename T>
  requires std::is_integral_v<T>
bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected,
                                           std::type_identity_t<T> desired, memory_order,
                                           memory_order) {
  metal_host::race_point();
  if (metal_host::fails_spuriously()) {
    __atomic_load(&object->word, expected, __ATOMIC_RELAXED);
    return false;
  }
  return __atomic_compare_exchange(&object->word, expected, &desired, true, __ATOMIC_RELAXED,
                                   __ATOMIC_RELAXED);
}

#define MLXHOG_FETCH(OP)                                                                         \
  template <typename T>                                                                          \
    requires std::is_integral_v<T>                                                               \
  T atomic_fetch_##OP##_explicit(volatile atomic<T>* object, std::type_identity_t<T> operand,    \
                                 memory_order) {                                                 \
    metal_host::race_point();                                                                    \
    return __atomic_fetch_##OP(&object->word, operand, __ATOMIC_RELAXED);                        \
  }
MLXHOG_FETCH(add)
MLXHOG_FETCH(sub)
MLXHOG_FETCH(and)
MLXHOG_FETCH(or)
MLXHOG_FETCH(xor)
#undef MLXHOG_FETCH

// One indivisible addition on the GPU. A CPU has no such instruction; the loop over bits means the same.
inline float atomic_fetch_add_explicit(volatile atomic<float>* object, float operand, memory_order) {
  metal_host::race_point();
  auto* bits = reinterpret_cast<volatile uint*>(&object->word);
  uint old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old,
                                      std::bit_cast<uint>(std::bit_cast<float>(old) + operand), true,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<float>(old);
}
inline float atomic_fetch_sub_explicit(volatile atomic<float>* object, float operand,
                                       memory_order order) {
  return atomic_fetch_add_explicit(object, -operand, order);
}

template <typename T, typename Choose>
T mlxhog_fetch_chosen(volatile atomic<T>* object, T operand, Choose choose) {
  metal_host::race_point();
  T old;
  __atomic_load(&object->word, &old, __ATOMIC_RELAXED);
  T chosen = choose(old, operand);
  while (!__atomic_compare_exchange(&object->word, &old, &chosen, true, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
    chosen = choose(old, operand);
  }
  return old;
}
template <typename T>
  requires std::is_integral_v<T>
T atomic_fetch_min_explicit(volatile atomic<T>* object, std::type_identity_t<T> operand, memory_order) {
  return mlxhog_fetch_chosen(object, operand, [](T a, T b) { return b < a ? b : a; });
}
template <typename T>
  requires std::is_integral_v<T>
T atomic_fetch_max_explicit(volatile atomic<T>* object, std::type_identity_t<T> operand, memory_order) {
  return mlxhog_fetch_chosen(object, operand, [](T a, T b) { return a < b ? b : a; });
}

}  // namespace metal
