#include "shapes.h"

#include <algorithm>
#include <cctype>

namespace mlxhog {
namespace {

std::vector<std::string> split(std::string_view text, char mark) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(mark, at), text.size());
    if (end > at) parts.emplace_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

Axis axis_of(std::string word, std::vector<std::string>& letters) {
  Axis axis;
  axis.text = word;
  axis.leading = word.ends_with("...");
  if (axis.leading) word.resize(word.size() - 3);
  if (const std::size_t minus = word.find('-'); minus != std::string::npos) {
    axis.less = std::stoll(word.substr(minus + 1));
    word.resize(minus);
  }
  for (const std::string& factor : split(word, '*')) {
    if (std::isdigit(static_cast<unsigned char>(factor[0]))) {
      axis.factor *= std::stoll(factor);
      continue;
    }
    const auto known = std::find(letters.begin(), letters.end(), factor);
    axis.letters.push_back(static_cast<std::size_t>(known - letters.begin()));
    if (known == letters.end()) letters.push_back(factor);
  }
  return axis;
}

// Whether an array has no elements, and its other axes more places than a loop over them should visit.
bool endless(const std::vector<Index>& shape) {
  bool empty = false, many = false;
  Index places = 1;
  for (const Index length : shape) {
    empty |= length == 0;
    many |= length > kMostEmpty / places;
    if (length && !many) places *= length;
  }
  return empty && many;
}

std::string tuple(const std::vector<std::string>& words) {
  std::string text = "(";
  for (const std::string& word : words) text += (text.size() > 1 ? ", " : "") + word;
  return text + (words.size() == 1 ? ",)" : ")");
}

}  // namespace

Shapes::Shapes(const char* name, std::string_view text) : function(name) {
  for (const std::string& group : split(text, ',')) {
    const std::size_t colon = group.find(':');
    Shaped argument;
    if (colon != std::string::npos)
      for (const std::string& word : split(std::string_view(group).substr(colon + 1), ' '))
        argument.axes.push_back(axis_of(word, letters));
    for (const std::string& each : split(std::string_view(group).substr(0, colon), ' ')) {
      argument.name = each;
      arguments.push_back(argument);
    }
  }
}

std::size_t Shapes::letter(std::string_view name) const {
  return static_cast<std::size_t>(std::find(letters.begin(), letters.end(), name) - letters.begin());
}

void Sizes::read() {
  for (std::size_t j = 0; j < given_.size(); ++j) {
    if (!given_[j]) continue;
    if (endless(*given_[j]))
      refuse(j, "an array without elements may have " + std::to_string(kMostEmpty) + " places in its other axes");
    if (!has_rank(j)) continue;
    const std::vector<Axis>& axes = shapes_.arguments[j].axes;
    for (std::size_t a = 0; a < axes.size(); ++a) {
      if (axes[a].letters.size() != 1 || axes[a].factor != 1 || axes[a].less) continue;
      if (Index& value = values_[axes[a].letters[0]]; value < 0) value = length(j, a);
    }
  }
  check();
}

void Sizes::expect_positive(std::initializer_list<const char*> letters) const {
  for (const char* letter : letters)
    if ((*this)[letter] < 1)
      throw nb::value_error((shapes_.function + ": " + letter + " is 0, expected at least 1").c_str());
}

bool Sizes::has_rank(std::size_t j) const {
  const std::vector<Axis>& axes = shapes_.arguments[j].axes;
  const std::size_t rank = given_[j]->size();
  return !axes.empty() && axes[0].leading ? rank + 1 >= axes.size() : rank == axes.size();
}

Index Sizes::length(std::size_t j, std::size_t axis) const {
  const std::vector<Index>& shape = *given_[j];
  const std::vector<Axis>& axes = shapes_.arguments[j].axes;
  if (!axes[axis].leading) return shape[shape.size() - axes.size() + axis];
  Index count = 1;
  for (std::size_t a = 0; a + axes.size() <= shape.size(); ++a) count *= shape[a];
  return count;
}

Index Sizes::expected(const Axis& axis) const {
  Index count = axis.factor;
  for (const std::size_t letter : axis.letters) {
    if (values_[letter] < 0) return -1;
    count *= values_[letter];
  }
  return count - axis.less;
}

void Sizes::check() const {
  for (std::size_t j = 0; j < given_.size(); ++j) {
    if (!given_[j]) continue;
    if (!has_rank(j)) refuse(j, required(j));
    for (std::size_t a = 0; a < shapes_.arguments[j].axes.size(); ++a)
      if (length(j, a) != expected(shapes_.arguments[j].axes[a])) refuse(j, required(j));
  }
}

std::string Sizes::required(std::size_t j) const {
  std::vector<std::string> words, lengths;
  for (const Axis& axis : shapes_.arguments[j].axes) {
    const Index length = expected(axis);
    words.push_back(axis.text);
    lengths.push_back(length < 0 ? axis.text : std::to_string(length) + (axis.leading ? "..." : ""));
  }
  return "the other arguments require " + tuple(words) + " = " + tuple(lengths);
}

void Sizes::refuse(std::size_t j, const std::string& required) const {
  std::vector<std::string> lengths;
  for (const Index length : *given_[j]) lengths.push_back(std::to_string(length));
  const std::string text = shapes_.function + ": " + shapes_.arguments[j].name + " has shape " + tuple(lengths);
  throw nb::value_error((text + "; " + required).c_str());
}

}  // namespace mlxhog
