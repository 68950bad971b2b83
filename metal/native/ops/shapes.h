// Binds a function by the shapes of its arrays, one string such as "q k: B S NH DK, v out: B S NH DV, starts: B S".
//
// A letter has one value over all arrays. An axis is a letter, a number, a product such as 4*DH or a difference such as
// K-1; "N..." stands for all leading axes, N for their product. A letter such as OUT_j has a value for each entry of
// the arguments that are lists. A name without a shape is not an array. The function is a lambda (Sizes&, pointers in
// the string's order, other arguments): T* is an array, Maybe<T> one that may be None, a vector of them a list. It runs
// without the GIL, once every shape agrees.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "simd.h"
#include "weight.h"

namespace nb = nanobind;

namespace mlxhog {

using namespace nb::literals;

// The bindings of each file of operators. Their strings say the shapes of all arrays, packed float32.
void bind_activation(nb::module_&), bind_attention(nb::module_&), bind_block_diagonal(nb::module_&),
    bind_conv(nb::module_&), bind_long_conv(nb::module_&), bind_loss(nb::module_&), bind_mlstm(nb::module_&),
    bind_norms(nb::module_&), bind_recurrence(nb::module_&), bind_regression(nb::module_&), bind_scan(nb::module_&),
    bind_slstm(nb::module_&);

// An argument without conversion: that would hide a slow copy of an input, and write an output into a temporary.
inline auto A(const char* name) { return nb::arg(name).noconvert(); }

// Null where the argument is None.
template <class T>
struct Maybe {
  T* data;
  operator T*() const { return data; }
};

using Floats = const float*;
using Result = float*;  // written in place
using MaybeFloats = Maybe<const float>;
using MaybeResult = Maybe<float>;

using FrozenFloats = std::vector<MaybeFloats>;
using FrozenHalves = std::vector<Maybe<const std::uint16_t>>;
using FrozenWords = std::vector<Maybe<const std::uint32_t>>;

// Shapes of the five lists of arrays that hold frozen weights (`weight.h`); of each weight the others are None.
inline const std::string kFrozen =
    "floats: OUT_j IN, bf16: OUT_j IN, packed: OUT_j WORDS_j, scales: OUT_j GROUPS_j, offsets: OUT_j GROUPS_j, ";

// Raises ValueError with the joined parts unless `holds`.
template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw nb::value_error(text.str().c_str());
}

struct Axis {
  std::string text;
  Index factor = 1, less = 0;  // 4 of "4*DH", 1 of "K-1"
  std::vector<std::size_t> letters;
  bool leading = false;  // all the axes before the others
};

struct Shaped {
  std::string name;
  std::vector<Axis> axes;
};

// The string of a binding, parsed.
struct Shapes {
  std::string function;
  std::vector<std::string> letters;
  std::vector<Shaped> arguments;

  Shapes(const char* function, std::string_view text);
  std::size_t letter(std::string_view name) const;  // letters.size() if it is unknown
};

// The value of every letter in one call.
class Sizes {
 public:
  explicit Sizes(const Shapes& shapes) : shapes_(shapes), values_(shapes.letters.size(), -1) {}

  // An array of the argument that comes next; next() ends the argument.
  template <class Array>
  void add(const Array& a, std::size_t entry) {
    View& view = views_.emplace_back(View{argument_, entry, {}});
    for (std::size_t j = 0; j < a.ndim(); ++j) view.shape.push_back(static_cast<Index>(a.shape(j)));
  }
  void add_list(std::size_t entries);
  void next() { ++argument_; }

  // Reads the letters; refuses an array whose shape disagrees with those before it.
  void read();

  Index operator[](std::string_view letter) const { return at(letter, 0); }
  Index at(std::string_view letter, std::size_t entry) const { return values_.at(place(shapes_.letter(letter), entry)); }

  template <class Shape, class... Letters>
  Shape as(Letters... letters) const {
    return {(*this)[letters]...};
  }

  // Refuses the arrays in which these letters have other values.
  void expect(std::initializer_list<std::pair<const char*, Index>> values) {
    for (const auto& [letter, value] : values) values_.at(shapes_.letter(letter)) = value;
    check();
  }

  // Refuses a letter that is 0.
  void expect_positive(std::initializer_list<const char*> letters) const;

 private:
  struct View {
    std::size_t argument, entry;
    std::vector<Index> shape;
  };

  const std::vector<Axis>& axes(const View& view) const { return shapes_.arguments[view.argument].axes; }
  bool has_rank(const View&) const;
  Index length(const View&, std::size_t axis) const;
  Index expected(const Axis&, std::size_t entry) const;
  std::size_t place(std::size_t letter, std::size_t entry) const;  // in values_
  void check() const;
  [[noreturn]] void refuse(const View&, const std::string& required) const;
  std::string required(const View&) const;

  const Shapes& shapes_;
  std::vector<Index> values_;  // -1: not known
  std::vector<View> views_;
  std::size_t argument_ = 0;
  std::optional<std::size_t> entries_;  // of every list
};

// Weight j of the lists of `kFrozen`.
Weight frozen(const Sizes& sizes, std::size_t j, const FrozenFloats& floats, const FrozenHalves& bf16,
              const FrozenWords& packed, const FrozenFloats& scales, const FrozenFloats& offsets);

// How a parameter of the lambda arrives from Python.
template <class P>
struct Argument {
  using Type = P;
  static constexpr bool optional = false;
  static void view(Sizes&, const Type&, std::size_t = 0) {}
  static P pass(const Type& value) { return value; }
};

template <class T>
struct Argument<T*> {
  using Type = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
  static constexpr bool optional = false;
  static void view(Sizes& sizes, const Type& a, std::size_t entry = 0) { sizes.add(a, entry); }
  static T* pass(const Type& a) { return a.data(); }
};

template <class T>
struct Argument<Maybe<T>> {
  using Type = std::optional<typename Argument<T*>::Type>;
  static constexpr bool optional = true;
  static void view(Sizes& sizes, const Type& a, std::size_t entry = 0) {
    if (a) sizes.add(*a, entry);
  }
  static Maybe<T> pass(const Type& a) { return {a ? a->data() : nullptr}; }
};

template <class P>
struct Argument<std::vector<P>> {
  using Type = std::vector<typename Argument<P>::Type>;
  static constexpr bool optional = false;
  static void view(Sizes& sizes, const Type& list) {
    sizes.add_list(list.size());
    for (std::size_t j = 0; j < list.size(); ++j) Argument<P>::view(sizes, list[j], j);
  }
  static std::vector<P> pass(const Type& list) {
    std::vector<P> all;
    for (const auto& a : list) all.push_back(Argument<P>::pass(a));
    return all;
  }
};

template <>  // not of arrays
struct Argument<std::vector<bool>> {
  using Type = std::vector<bool>;
  static constexpr bool optional = false;
  static void view(Sizes&, const Type&) {}
  static const Type& pass(const Type& flags) { return flags; }
};

template <class P>
auto positional(const Shaped& argument) {
  if constexpr (Argument<P>::optional) return A(argument.name.c_str()).none();
  else return A(argument.name.c_str());
}

template <class Function, class Returned, class... P>
std::type_identity<Returned(P...)> signature(Returned (Function::*)(P...) const) {
  return {};
}

// Calls define(what Python calls, the arguments), `keywords` being the last parameters of the function.
template <class Function, class Returned, class... P, class Define, class... Keywords>
void def_as(std::type_identity<Returned(Sizes&, P...)>, const Shapes& shapes, const Function& function,
            const Define& define, const Keywords&... keywords) {
  constexpr std::size_t count = sizeof...(P) - sizeof...(Keywords);
  if (shapes.arguments.size() != count) throw std::logic_error(shapes.function + ": its string has other arguments");
  const auto call = [shapes, function](typename Argument<P>::Type... arguments) -> Returned {
    Sizes sizes(shapes);
    ((Argument<P>::view(sizes, arguments), sizes.next()), ...);
    sizes.read();
    nb::gil_scoped_release release;
    return function(sizes, Argument<P>::pass(arguments)...);
  };
  [&]<std::size_t... J>(std::index_sequence<J...>) {
    define(call, positional<std::tuple_element_t<J, std::tuple<P...>>>(shapes.arguments[J])..., nb::kw_only(),
           keywords...);
  }(std::make_index_sequence<count>());
}

// `keywords` and then "threads" are the last parameters of the function, which Python gives by name. The docstring ends
// with `text`.
template <class Function, class... Keywords>
void def(nb::module_& m, const char* name, const std::string& text, const char* doc, const Function& function,
         const Keywords&... keywords) {
  const std::string whole = doc + std::string(*doc ? "\n\n" : "") + text;
  def_as(signature(&Function::operator()), Shapes(name, text), function, [&](const auto& call, const auto&... arguments) {
    m.def(name, call, arguments..., whole.c_str());
  }, keywords..., nb::arg("threads"));
}

// The constructor of a class from a function that returns an object. Its arrays, which come first, live as long.
template <std::size_t kArrays, class Class, class... P, class... Keywords>
void def_init(nb::class_<Class>& bound, const char* name, const char* text, Class (*make)(Sizes&, P...),
              const Keywords&... keywords) {
  const auto define = [&](const auto& call, const auto&... arguments) {
    const auto init = [call](Class* self, typename Argument<P>::Type... given) { new (self) Class(call(given...)); };
    [&]<std::size_t... J>(std::index_sequence<J...>) {
      bound.def("__init__", init, arguments..., nb::keep_alive<1, J + 2>()..., text);
    }(std::make_index_sequence<kArrays>());
  };
  def_as(std::type_identity<Class(Sizes&, P...)>(), Shapes(name, text), make, define, keywords...);
}

}  // namespace mlxhog
