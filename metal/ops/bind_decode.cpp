// The Python class of the native decoding step: it holds the parameters' arrays, checks sizes and token ids,
// and releases the GIL while a step runs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "decode.h"

namespace nb = nanobind;

namespace mlxhog {
namespace {

using In = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Layer = std::pair<In, std::optional<In>>;

template <class Array>
void expect(const std::string& name, const Array& a, Index wanted) {
  if (static_cast<Index>(a.size()) != wanted)
    throw nb::value_error((name + " has " + std::to_string(a.size()) + " elements, expected " + std::to_string(wanted) +
                           "; give every array the shape of its docstring")
                              .c_str());
}

class Decoder {
 public:
  Decoder(Index d, Index heads, Index DK, Index DV, Index U, Index V, float norm_eps, float eps, float gate_cap,
          float logit_cap, std::int32_t reset_token, In embedding, std::vector<std::vector<Layer>> blocks, std::optional<In> out_norm, In head)
      : model_{d, heads, DK, DV, U, V, norm_eps, eps, gate_cap, logit_cap, reset_token, nullptr, {}, {}, nullptr} {
    model_.embedding = hold("embedding", embedding, V * d);
    const Index qk = heads * DK, v = heads * DV;
    const std::pair<Index, Index> sizes[kBlockLayers] = {  // (out, in); a norm has no in
        {d, 1}, {qk, d}, {qk, d}, {v, d}, {v, d}, {heads, d}, {heads, d}, {v, 1}, {d, v}, {d, 1}, {U, d}, {U, d}, {d, U}};
    for (const std::vector<Layer>& block : blocks) {
      if (block.size() != kBlockLayers)
        throw nb::value_error("a block must have one (weight, bias) pair per layer; see decode.h");
      auto& layers = model_.blocks.emplace_back();
      for (std::size_t j = 0; j < kBlockLayers; ++j) {
        const std::string name = "layer " + std::to_string(j) + " of block " + std::to_string(model_.blocks.size() - 1);
        layers[j].weight = hold(name, block[j].first, sizes[j].first * sizes[j].second);
        if (block[j].second) layers[j].bias = hold(name + " (bias)", *block[j].second, sizes[j].first);
      }
    }
    if (out_norm) model_.out_norm.weight = hold("out_norm", *out_norm, d);
    model_.head = hold("head", head, V * d);
  }

  Index state_floats() const { return static_cast<Index>(model_.blocks.size()) * model_.block_state(); }

  void step(const Tokens& tokens, const In& before, Out after, Out logits, int threads) const {
    const Index rows = static_cast<Index>(tokens.size());
    expect("before", before, rows * state_floats());
    expect("after", after, rows * state_floats());
    expect("logits", logits, rows * model_.V);
    for (Index r = 0; r < rows; ++r)
      if (tokens.data()[r] < 0 || tokens.data()[r] >= model_.V)
        throw nb::value_error(("token " + std::to_string(tokens.data()[r]) + " in row " + std::to_string(r) +
                               " is outside [0, " + std::to_string(model_.V) + ")")
                                  .c_str());
    nb::gil_scoped_release release;
    decode_step(model_, rows, tokens.data(), before.data(), after.data(), logits.data(), threads);
  }

 private:
  const float* hold(const std::string& name, const In& array, Index wanted) {
    expect(name, array, wanted);
    held_.push_back(array);
    return array.data();
  }

  DecodeModel model_;
  std::vector<In> held_;
};

}  // namespace
}  // namespace mlxhog

void bind_decode(nb::module_& parent) {
  using namespace nb::literals;
  using namespace mlxhog;
  const auto A = [](const char* name) { return nb::arg(name).noconvert(); };
  nb::class_<Decoder>(parent, "XlstmLargeDecoder",
                      "One token of xLSTM Large for a few sequences, from the memory of its parameters.")
      .def(nb::init<Index, Index, Index, Index, Index, Index, float, float, float, float, std::int32_t, In,
                    std::vector<std::vector<Layer>>, std::optional<In>, In>(),
           nb::kw_only(), "d"_a, "heads"_a, "DK"_a, "DV"_a, "U"_a, "V"_a, "norm_eps"_a, "eps"_a, "gate_cap"_a,
           "logit_cap"_a, "reset_token"_a, A("embedding"), A("blocks"), A("out_norm").none(), A("head"))
      .def_prop_ro("state_floats", &Decoder::state_floats, "Floats of one sequence's states.")
      .def("step", &Decoder::step, A("tokens"), A("before"), A("after"), A("logits"), nb::kw_only(), "threads"_a,
           "Read tokens (B,) int32 after the states `before` (B, state_floats); write `after` and logits (B, V).");
}
