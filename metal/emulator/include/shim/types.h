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

// Metal's bfloat16: the high half of a float. Conversions from float, which have to be explicit here, round to the
// nearest, or to the even one.
struct bfloat {
  std::uint16_t bits;

  bfloat() = default;
  constexpr explicit bfloat(float x) : bits(rounded(std::bit_cast<uint>(x), x == x)) {}
  constexpr operator float() const { return std::bit_cast<float>(uint{bits} << 16); }

 private:
  static constexpr std::uint16_t rounded(uint word, bool is_number) {
    return static_cast<std::uint16_t>((is_number ? word + 0x7fff + (word >> 16 & 1) : word | 0x400000) >> 16);
  }
};
static_assert(sizeof(bfloat) == 2);

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
