// Metal's small vectors as plain structs: components, arithmetic by component, no swizzles.
#pragma once

#include "shim/types.h"

namespace metal {

template <typename T>
struct alignas(2 * sizeof(T)) vec2 {
  T x, y;
  vec2() = default;
  constexpr vec2(T all) : x(all), y(all) {}
  constexpr vec2(T x, T y) : x(x), y(y) {}
  template <typename U>
  explicit constexpr vec2(vec2<U> v) : x(static_cast<T>(v.x)), y(static_cast<T>(v.y)) {}
  T& operator[](uint i) { return (&x)[i]; }
  const T& operator[](uint i) const { return (&x)[i]; }
};

template <typename T>
struct alignas(4 * sizeof(T)) vec3 {
  T x, y, z;
  vec3() = default;
  constexpr vec3(T all) : x(all), y(all), z(all) {}
  constexpr vec3(T x, T y, T z) : x(x), y(y), z(z) {}
  T& operator[](uint i) { return (&x)[i]; }
  const T& operator[](uint i) const { return (&x)[i]; }
};

template <typename T>
struct alignas(4 * sizeof(T)) vec4 {
  T x, y, z, w;
  vec4() = default;
  constexpr vec4(T all) : x(all), y(all), z(all), w(all) {}
  constexpr vec4(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}
  template <typename U>
  explicit constexpr vec4(vec4<U> v)
      : x(static_cast<T>(v.x)), y(static_cast<T>(v.y)), z(static_cast<T>(v.z)), w(static_cast<T>(v.w)) {}
  T& operator[](uint i) { return (&x)[i]; }
  const T& operator[](uint i) const { return (&x)[i]; }
};

// By component; a scalar operand stands for a vector of it.
#define MLXHOG_BY_COMPONENT(OP)                                                                     \
  template <typename T>                                                                             \
  constexpr vec2<T> operator OP(vec2<T> a, std::type_identity_t<vec2<T>> b) {                       \
    return {static_cast<T>(a.x OP b.x), static_cast<T>(a.y OP b.y)};                                \
  }                                                                                                 \
  template <typename T>                                                                             \
  constexpr vec2<T> operator OP(T a, vec2<T> b) {                                                   \
    return vec2<T>(a) OP b;                                                                         \
  }                                                                                                 \
  template <typename T>                                                                             \
  constexpr vec3<T> operator OP(vec3<T> a, std::type_identity_t<vec3<T>> b) {                       \
    return {static_cast<T>(a.x OP b.x), static_cast<T>(a.y OP b.y), static_cast<T>(a.z OP b.z)};    \
  }                                                                                                 \
  template <typename T>                                                                             \
  constexpr vec3<T> operator OP(T a, vec3<T> b) {                                                   \
    return vec3<T>(a) OP b;                                                                         \
  }                                                                                                 \
  template <typename T>                                                                             \
  constexpr vec4<T> operator OP(vec4<T> a, std::type_identity_t<vec4<T>> b) {                       \
    return {static_cast<T>(a.x OP b.x), static_cast<T>(a.y OP b.y), static_cast<T>(a.z OP b.z),     \
            static_cast<T>(a.w OP b.w)};                                                            \
  }                                                                                                 \
  template <typename T>                                                                             \
  constexpr vec4<T> operator OP(T a, vec4<T> b) {                                                   \
    return vec4<T>(a) OP b;                                                                         \
  }
MLXHOG_BY_COMPONENT(+)
MLXHOG_BY_COMPONENT(-)
MLXHOG_BY_COMPONENT(*)
MLXHOG_BY_COMPONENT(/)
#undef MLXHOG_BY_COMPONENT

template <typename V, typename W>
constexpr auto operator+=(V& a, W b) -> decltype(a.x, a = a + b) {
  return a = a + b;
}
template <typename V, typename W>
constexpr auto operator-=(V& a, W b) -> decltype(a.x, a = a - b) {
  return a = a - b;
}
template <typename V, typename W>
constexpr auto operator*=(V& a, W b) -> decltype(a.x, a = a * b) {
  return a = a * b;
}

template <typename T>
constexpr T dot(vec2<T> a, vec2<T> b) {
  return a.x * b.x + a.y * b.y;
}
template <typename T>
constexpr T dot(vec4<T> a, vec4<T> b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

using half2 = vec2<half>;
using half4 = vec4<half>;
using bfloat2 = vec2<bfloat>;
using bfloat4 = vec4<bfloat>;
using float2 = vec2<float>;
using float3 = vec3<float>;
using float4 = vec4<float>;
using int2 = vec2<int>;
using int3 = vec3<int>;
using int4 = vec4<int>;
using uint2 = vec2<uint>;
using uint3 = vec3<uint>;
using uint4 = vec4<uint>;
using uchar4 = vec4<uchar>;
using ulong2 = vec2<ulong>;

}  // namespace metal
