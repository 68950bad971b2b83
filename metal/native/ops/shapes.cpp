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

void Sizes::add_list(std::size_t entries) {
  require(!entries_ || entries == *entries_, shapes_.function, ": ", shapes_.arguments[argument_].name, " has ", entries,
          " entries; every list must have one entry per map, here ", entries_.value_or(0));
  entries_ = entries;
  values_.resize(shapes_.letters.size() * std::max<std::size_t>(entries, 1), -1);
}

void Sizes::read() {
  for (const View& view : views_) {
    if (!has_rank(view)) continue;
    for (std::size_t a = 0; a < axes(view).size(); ++a) {
      const Axis& axis = axes(view)[a];
      if (axis.letters.size() != 1 || axis.factor != 1 || axis.less) continue;
      if (Index& value = values_[place(axis.letters[0], view.entry)]; value < 0) value = length(view, a);
    }
  }
  check();
}

void Sizes::expect_positive(std::initializer_list<const char*> letters) const {
  for (const char* letter : letters)
    require((*this)[letter] > 0, shapes_.function, ": ", letter, " is 0, expected at least 1");
}

bool Sizes::has_rank(const View& view) const {
  const std::size_t rank = view.shape.size(), count = axes(view).size();
  return count && axes(view)[0].leading ? rank + 1 >= count : rank == count;
}

Index Sizes::length(const View& view, std::size_t axis) const {
  const std::size_t rank = view.shape.size(), count = axes(view).size();
  if (!axes(view)[axis].leading) return view.shape[rank - count + axis];
  Index product = 1;
  for (std::size_t a = 0; a + count <= rank; ++a) product *= view.shape[a];
  return product;
}

Index Sizes::expected(const Axis& axis, std::size_t entry) const {
  Index count = axis.factor;
  for (const std::size_t letter : axis.letters) {
    const Index value = values_[place(letter, entry)];
    if (value < 0) return -1;
    count *= value;
  }
  return count - axis.less;
}

std::size_t Sizes::place(std::size_t letter, std::size_t entry) const {
  const bool varies = letter < shapes_.letters.size() && shapes_.letters[letter].ends_with("_j");
  return varies ? letter + entry * shapes_.letters.size() : letter;
}

void Sizes::check() const {
  for (const View& view : views_) {
    if (!has_rank(view)) refuse(view, required(view));
    for (std::size_t a = 0; a < axes(view).size(); ++a)
      if (length(view, a) != expected(axes(view)[a], view.entry)) refuse(view, required(view));
  }
}

std::string Sizes::required(const View& view) const {
  std::vector<std::string> words, lengths;
  for (const Axis& axis : axes(view)) {
    const Index length = expected(axis, view.entry);
    words.push_back(axis.text);
    lengths.push_back(length < 0 ? axis.text : std::to_string(length) + (axis.leading ? "..." : ""));
  }
  return "the other arguments require " + tuple(words) + " = " + tuple(lengths);
}

void Sizes::refuse(const View& view, const std::string& required) const {
  std::vector<std::string> lengths;
  for (const Index length : view.shape) lengths.push_back(std::to_string(length));
  const std::string text = shapes_.function + ": " + shapes_.arguments[view.argument].name + " has shape ";
  throw nb::value_error((text + tuple(lengths) + "; " + required).c_str());
}

Weight frozen(const Sizes& sizes, std::size_t j, const FrozenFloats& floats, const FrozenHalves& bf16,
              const FrozenWords& packed, const FrozenFloats& scales, const FrozenFloats& offsets) {
  Weight weight(floats[j]);
  weight.bf16 = bf16[j], weight.packed = packed[j], weight.scales = scales[j], weight.offsets = offsets[j];
  const bool is_packed = weight.packed && weight.scales && weight.offsets;
  require((weight.floats != nullptr) + (weight.bf16 != nullptr) + is_packed == 1, "weight ", j,
          ": give floats, or bf16, or packed with its scales and offsets");
  if (!is_packed) return weight;
  const Index in = sizes["IN"], words = sizes.at("WORDS_j", j), groups = sizes.at("GROUPS_j", j);
  for (const Index bits : {4, 8})
    if (in * bits == words * 32) weight.bits = bits;
  require(weight.bits && groups > 0 && words % groups == 0, "weight ", j, " has ", words, " words and ", groups,
          " groups in a row, which are no ", in, " numbers of 4 or 8 bits");
  weight.group = in / groups;
  return weight;
}

}  // namespace mlxhog
