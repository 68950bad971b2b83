// Metal's scalar types, and its small vectors as far as our kernels use them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

using uchar = unsigned char;
using uint = unsigned int;
using ulong = unsigned long;
static_assert(sizeof(ulong) == 8);

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

namespace metal {

struct alignas(16) uint3 {
  uint x, y, z;
  uint& operator[](uint i) { return (&x)[i]; }
  uint operator[](uint i) const { return (&x)[i]; }
};

struct alignas(16) ulong2 {
  ulong x, y;
  constexpr ulong2(ulong all) : x(all), y(all) {}
  constexpr ulong2(ulong x, ulong y) : x(x), y(y) {}
};

}  // namespace metal
