// Metal's scalar types.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using half = _Float16;  // rounded after every operation: see the flags in build.py

// The upper half of a float. Metal converts to float by itself and from float on request only.
struct bfloat {
  std::uint16_t bits;

  bfloat() = default;
  explicit constexpr bfloat(float value) : bits(rounded(std::bit_cast<std::uint32_t>(value))) {}
  constexpr operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }

 private:
  // To nearest, ties to even; a NaN stays one (rounding could carry it into infinity or zero).
  static constexpr std::uint16_t rounded(std::uint32_t word) {
    if ((word & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(word >> 16 | 0x40u);
    return static_cast<std::uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
  }
};
static_assert(sizeof(half) == 2 && sizeof(bfloat) == 2 && sizeof(ulong) == 8);

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define MAXFLOAT __FLT_MAX__
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define M_PI_F 3.14159265358979323846264338327950288f

namespace metal {

using std::numeric_limits;

// The same bits as another type of equal size; unequal sizes do not compile, as in Metal.
template <typename To, typename From>
constexpr To as_type(From value) {
  return std::bit_cast<To>(value);
}

}  // namespace metal

using metal::as_type;  // built in, like the types
