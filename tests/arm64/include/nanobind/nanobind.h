// As much of nanobind as the bindings of the operators use, without Python: the calls come from a stream, so that a
// program for another processor can answer them (`driver.cpp`; the other end is `emulated.py`, with the same table).
//
//     value       n | b u8 | i i64 | d f64 | s text | l u32 values | o u32 (an object) | a array | r u32 (an array of
//                 this call, again)
//     array       dtype (kind char, size u8), u8 axes, i64 lengths, data
//     text        u32 length, bytes
//     call        text name, u32 n, values, u32 n, (text, value) of the named ones
//     start       u32 n, (text name, bool is it a property, bool has it arguments) of every function
//     answer      k value, u32 n, (u32 array, data) of those it may have written | v, t or m text: an error
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace nanobind {

struct value_error : std::runtime_error {
  using runtime_error::runtime_error;
};
struct type_error : std::runtime_error {
  using runtime_error::runtime_error;
};

// An array of the caller's, copied; it stays, since objects hold arrays.
struct Memory {
  char kind;
  std::size_t item, bytes;
  std::vector<std::size_t> shape;
  std::unique_ptr<std::byte, void (*)(std::byte*)> data;
  bool written = false;  // by a function that takes it as an output
};

struct Value {
  char tag = 'n';
  std::int64_t integer = 0;
  double number = 0;
  std::string text;
  std::vector<Value> items;
  std::shared_ptr<Memory> array;
  std::shared_ptr<void> object;
};

// -- arguments --------------------------------------------------------------------------------------------------------

struct numpy {};
struct c_contig {};
namespace device {
struct cpu {};
}  // namespace device
template <int N>
struct ndim {};

struct capsule {
  capsule(void*, void (*)(void*) noexcept) {}
};

template <class...>
struct ScalarOf;
template <class First, class... Rest>
struct ScalarOf<First, Rest...>
    : std::conditional_t<std::is_arithmetic_v<First>, std::type_identity<First>, ScalarOf<Rest...>> {};
template <class>
inline constexpr int kAxes = -1;
template <int N>
inline constexpr int kAxes<ndim<N>> = N;

template <class... Options>
class ndarray {
 public:
  using Scalar = typename ScalarOf<Options...>::type;
  static constexpr bool kWritten = !std::is_const_v<Scalar>;

  explicit ndarray(std::shared_ptr<Memory> memory) : memory_(std::move(memory)) {
    using Plain = std::remove_const_t<Scalar>;
    constexpr char kind = std::is_floating_point_v<Plain> ? 'f' : std::is_signed_v<Plain> ? 'i' : 'u';
    constexpr int axes = std::max({kAxes<Options>...});
    if (!memory_ || memory_->kind != kind || memory_->item != sizeof(Plain) ||
        (axes >= 0 && memory_->shape.size() != static_cast<std::size_t>(axes)))
      throw type_error("incompatible function arguments: an array of another type or number of axes");
    memory_->written |= kWritten;
  }
  ndarray(Scalar*, std::size_t, const std::size_t*, const capsule&) {}

  Scalar* data() const { return reinterpret_cast<Scalar*>(memory_->data.get()); }
  std::size_t size() const { return memory_->bytes / memory_->item; }
  std::size_t ndim() const { return memory_->shape.size(); }
  std::size_t shape(std::size_t axis) const { return memory_->shape[axis]; }

 private:
  std::shared_ptr<Memory> memory_;
};

inline void expect_tag(const Value& value, const char* tags) {
  if (!std::strchr(tags, value.tag))
    throw type_error(std::string("incompatible function arguments: '") + value.tag + "', expected one of " + tags);
}

template <class T>
struct From {
  static T get(const Value& value) {
    static_assert(std::is_arithmetic_v<T>);
    if constexpr (std::is_floating_point_v<T>) {
      expect_tag(value, "di");
      return static_cast<T>(value.tag == 'd' ? value.number : static_cast<double>(value.integer));
    } else {
      expect_tag(value, std::is_same_v<T, bool> ? "b" : "bi");
      const T number = static_cast<T>(value.integer);
      if (static_cast<std::int64_t>(number) != value.integer || (std::is_unsigned_v<T> && value.integer < 0))
        throw type_error("incompatible function arguments: " + std::to_string(value.integer) + " does not fit");
      return number;
    }
  }
};
template <>
struct From<std::string> {
  static std::string get(const Value& value) { return expect_tag(value, "s"), value.text; }
};
template <class... Options>
struct From<ndarray<Options...>> {
  static ndarray<Options...> get(const Value& value) { return ndarray<Options...>(value.array); }
};
template <class T>
struct From<T*> {  // an object that only other bindings make, such as locks: None alone can come
  static T* get(const Value& value) { return expect_tag(value, "n"), nullptr; }
};
template <class T>
struct From<std::optional<T>> {
  static std::optional<T> get(const Value& value) {
    return value.tag == 'n' ? std::nullopt : std::optional<T>(From<T>::get(value));
  }
};
template <class T>
struct From<std::vector<T>> {
  static std::vector<T> get(const Value& value) {
    expect_tag(value, "l");
    std::vector<T> all;
    for (const Value& item : value.items) all.push_back(From<T>::get(item));
    return all;
  }
};
template <class... T>
struct From<std::tuple<T...>> {
  static std::tuple<T...> get(const Value& value) {
    expect_tag(value, "l");
    if (value.items.size() != sizeof...(T)) throw type_error("incompatible function arguments: a tuple's length");
    return of(value, std::index_sequence_for<T...>{});
  }
  template <std::size_t... I>
  static std::tuple<T...> of(const Value& value, std::index_sequence<I...>) {
    return std::tuple<T...>{From<T>::get(value.items[I])...};
  }
};
template <class A, class B>
struct From<std::pair<A, B>> {
  static std::pair<A, B> get(const Value& value) {
    auto both = From<std::tuple<A, B>>::get(value);
    return {std::get<0>(std::move(both)), std::get<1>(std::move(both))};
  }
};

// -- results ----------------------------------------------------------------------------------------------------------

inline Value to_value(bool x) { return {.tag = 'b', .integer = x}; }
inline Value to_value(double x) { return {.tag = 'd', .number = x}; }
inline Value to_value(const char* x) { return {.tag = 's', .text = x}; }
template <class T>
  requires std::is_integral_v<T>
Value to_value(T x) {
  return {.tag = 'i', .integer = static_cast<std::int64_t>(x)};
}
template <class A, class B>
Value to_value(const std::pair<A, B>& x) {
  return {.tag = 'l', .items = {to_value(x.first), to_value(x.second)}};
}

// -- functions --------------------------------------------------------------------------------------------------------

struct Nothing {};
inline Nothing none() { return {}; }

struct arg {
  std::string name;
  std::optional<Value> fallback;

  explicit arg(const char* name_) : name(name_) {}
  arg& noconvert() { return *this; }
  arg& none() { return *this; }
  arg& operator=(Nothing) { return fallback = Value{}, *this; }
  template <class T>
    requires std::is_arithmetic_v<T>
  arg& operator=(T x) {
    return fallback = to_value(x), *this;
  }
};
struct kw_only {};

namespace literals {
inline arg operator""_a(const char* name, std::size_t) { return arg(name); }
}  // namespace literals

struct gil_scoped_release {
  gil_scoped_release() {}
  ~gil_scoped_release() {}
};

struct Function {
  std::vector<arg> arguments;  // without the object of a method
  bool method = false, property = false;
  std::function<Value(const std::vector<Value>&)> call;
};

inline std::map<std::string, Function>& functions() {
  static std::map<std::string, Function> all;
  return all;
}

inline void note(Function& made, const arg& extra) { made.arguments.push_back(extra); }
inline void note(Function&, kw_only) {}
inline void note(Function&, const char*) {}

template <class T>
inline constexpr bool kArray = false;
template <class... Options>
inline constexpr bool kArray<ndarray<Options...>> = true;

// Functions that return an array are left out: they are about Python's memory.
template <class R, class... Args, class Call, class... Extras>
void define(const std::string& name, bool method, const Call& call, const Extras&... extras) {
  if constexpr (!kArray<R>) {
    Function made;
    made.method = method;
    (note(made, extras), ...);
    made.call = [call, method](const std::vector<Value>& given) {
      if (given.size() != sizeof...(Args) + method) throw type_error("incompatible function arguments: their number");
      return [&]<std::size_t... I>(std::index_sequence<I...>) {
        [[maybe_unused]] std::tuple<std::remove_cvref_t<Args>...> own{
            From<std::remove_cvref_t<Args>>::get(given[I + method])...};
        void* object = method ? given[0].object.get() : nullptr;
        if constexpr (std::is_void_v<R>) return call(object, std::get<I>(own)...), Value{};
        else return to_value(call(object, std::get<I>(own)...));
      }(std::index_sequence_for<Args...>{});
    };
    functions()[name] = std::move(made);
  }
}

template <class R, class... Args>
struct Signature {
  template <class F, class... Extras>
  static void define_function(const std::string& name, const F& function, const Extras&... extras) {
    define<R, Args...>(name, false, [function](void*, auto&... own) { return function(own...); }, extras...);
  }
};
template <class C, class R, class... Args>
Signature<R, Args...> signature(R (C::*)(Args...) const);
template <class R, class... Args>
Signature<R, Args...> signature(R (*)(Args...));

class module_ {
 public:
  explicit module_(std::string prefix = "") : prefix_(std::move(prefix)) {}

  template <class F, class... Extras>
  module_& def(const char* name, F function, const Extras&... extras) {
    if constexpr (std::is_pointer_v<F>)
      decltype(signature(function))::define_function(prefix_ + name, function, extras...);
    else decltype(signature(&F::operator()))::define_function(prefix_ + name, function, extras...);
    return *this;
  }
  module_ def_submodule(const char* name, const char*) { return module_(prefix_ + name + "."); }
  struct Attribute {
    template <class T>
    void operator=(const T&) {}
  };
  Attribute attr(const char*) { return {}; }

 private:
  std::string prefix_;
};

template <class... Args>
struct init {};

template <class T>
class class_ {
 public:
  class_(module_&, const char* name, const char*) : prefix_(std::string(name) + ".") {}

  template <class... Args, class... Extras>
  class_& def(init<Args...>, const Extras&... extras) {
    Function made;
    (note(made, extras), ...);
    made.call = [](const std::vector<Value>& given) {
      if (given.size() != sizeof...(Args)) throw type_error("incompatible function arguments: their number");
      return [&]<std::size_t... I>(std::index_sequence<I...>) {
        return Value{.tag = 'o', .object = std::make_shared<T>(From<std::remove_cvref_t<Args>>::get(given[I])...)};
      }(std::index_sequence_for<Args...>{});
    };
    functions()[prefix_ + "__init__"] = std::move(made);
    return *this;
  }
  template <class R, class... Args, class... Extras>
  class_& def(const char* name, R (T::*method)(Args...) const, const Extras&... extras) {
    define<R, Args...>(prefix_ + name, true, [method](void* self, auto&... own) {
      return (static_cast<const T*>(self)->*method)(own...);
    }, extras...);
    return *this;
  }
  template <class R>
  class_& def_prop_ro(const char* name, R (T::*method)() const, const char*) {
    def(name, method);
    functions()[prefix_ + name].property = true;
    return *this;
  }

 private:
  std::string prefix_;
};

}  // namespace nanobind
