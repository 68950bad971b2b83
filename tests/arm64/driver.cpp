// Answers calls of native operators from its standard input on its standard output; see include/nanobind/nanobind.h for both.
#include <cstdio>
#include <cstdlib>

#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_ops(nb::module_& m);
void bind_decode(nb::module_& m);
void bind_directions(nb::module_& m);
void bind_muon(nb::module_& m);

namespace {

using Arrays = std::vector<std::shared_ptr<nb::Memory>>;

std::vector<std::shared_ptr<void>> objects;

void read(void* to, std::size_t bytes) {
  if (bytes && std::fread(to, bytes, 1, stdin) != 1) std::exit(0);  // the caller has ended
}
void write(const void* from, std::size_t bytes) {
  if (bytes && std::fwrite(from, bytes, 1, stdout) != 1) std::exit(1);
}
template <class T>
T read() {
  T x;
  read(&x, sizeof x);
  return x;
}
template <class T>
void write(T x) {
  write(&x, sizeof x);
}
std::string read_text() {
  std::string text(read<std::uint32_t>(), '\0');
  read(text.data(), text.size());
  return text;
}
void write_text(const std::string& text) {
  write(static_cast<std::uint32_t>(text.size()));
  write(text.data(), text.size());
}

std::shared_ptr<nb::Memory> read_array() {
  constexpr std::align_val_t kLine{64};
  const char kind = read<char>();
  std::size_t item = read<std::uint8_t>(), bytes = item;
  std::vector<std::size_t> shape(read<std::uint8_t>());
  for (std::size_t& length : shape) bytes *= length = static_cast<std::size_t>(read<std::int64_t>());
  auto* data = new (kLine) std::byte[bytes];
  read(data, bytes);
  return std::make_shared<nb::Memory>(nb::Memory{
      kind, item, bytes, shape, {data, [](std::byte* p) { ::operator delete[](p, kLine); }}, false});
}

nb::Value read_value(Arrays& arrays) {
  nb::Value value{.tag = read<char>()};
  switch (value.tag) {
    case 'b': value.integer = read<std::uint8_t>(); break;
    case 'i': value.integer = read<std::int64_t>(); break;
    case 'd': value.number = read<double>(); break;
    case 's': value.text = read_text(); break;
    case 'l': {
      const auto count = read<std::uint32_t>();
      for (std::uint32_t i = 0; i < count; ++i) value.items.push_back(read_value(arrays));
      break;
    }
    case 'o': value.object = objects.at(read<std::uint32_t>()); break;
    case 'a': value.array = arrays.emplace_back(read_array()); break;
    case 'r': value.array = arrays.at(read<std::uint32_t>()); break;
  }
  return value;
}

void write_value(const nb::Value& value) {
  write(value.tag);
  switch (value.tag) {
    case 'b': write(static_cast<std::uint8_t>(value.integer)); break;
    case 'i': write(value.integer); break;
    case 'd': write(value.number); break;
    case 's': write_text(value.text); break;
    case 'l':
      write(static_cast<std::uint32_t>(value.items.size()));
      for (const nb::Value& item : value.items) write_value(item);
      break;
    case 'o':
      write(static_cast<std::uint32_t>(objects.size()));
      objects.push_back(value.object);
      break;
  }
}

nb::Value called(const std::string& name, std::vector<nb::Value> given, std::map<std::string, nb::Value> named) {
  const auto found = nb::functions().find(name);
  if (found == nb::functions().end()) throw nb::type_error("no function is called " + name);
  const nb::Function& function = found->second;
  for (std::size_t k = given.size() - function.method; k < function.arguments.size(); ++k) {
    const nb::arg& argument = function.arguments[k];
    if (const auto own = named.extract(argument.name)) given.push_back(own.mapped());
    else if (argument.fallback) given.push_back(*argument.fallback);
    else throw nb::type_error("incompatible function arguments: " + argument.name + " is missing");
  }
  if (!named.empty()) throw nb::type_error("incompatible function arguments: " + named.begin()->first);
  return function.call(given);
}

void answer() {
  const std::string name = read_text();
  Arrays arrays;
  std::vector<nb::Value> given;
  std::map<std::string, nb::Value> named;
  for (auto count = read<std::uint32_t>(); count; --count) given.push_back(read_value(arrays));
  for (auto count = read<std::uint32_t>(); count; --count) {
    const std::string key = read_text();
    named[key] = read_value(arrays);
  }
  const auto refuse = [](char kind, const char* why) { write(kind), write_text(why); };
  try {
    const nb::Value result = called(name, std::move(given), std::move(named));
    write('k');
    write_value(result);
    const auto written = [](const auto& array) { return array->written; };
    write(static_cast<std::uint32_t>(std::count_if(arrays.begin(), arrays.end(), written)));
    for (std::size_t i = 0; i < arrays.size(); ++i)
      if (written(arrays[i])) write(static_cast<std::uint32_t>(i)), write(arrays[i]->data.get(), arrays[i]->bytes);
  } catch (const nb::value_error& error) {
    refuse('v', error.what());
  } catch (const nb::type_error& error) {
    refuse('t', error.what());
  } catch (const std::bad_alloc& error) {
    refuse('m', error.what());
  }
}

}  // namespace

int main() {
  nb::module_ module;
  bind_ops(module);
  bind_decode(module);
  bind_directions(module);
  bind_muon(module);
  write(static_cast<std::uint32_t>(nb::functions().size()));
  for (const auto& [name, function] : nb::functions()) 
    write_text(name), write(function.property), write(!function.arguments.empty());
  for (;;) {
    std::fflush(stdout);
    answer();
  }
}
