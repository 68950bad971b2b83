// The Python class of the native decoding step: it holds the parameters' arrays, checks sizes and token ids,
// and releases the GIL while a step runs.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "decode.h"
#include "pool.h"
#include "shapes.h"

namespace mlxhog {
namespace {

using Tokens = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Layer = std::pair<std::optional<In>, std::optional<In>>;  // weight and bias
using Block = std::pair<std::string, std::vector<Layer>>;       // kind and layers, as in decode.h

// Shapes of the weights and of the biases of a kind, and the layers that may lack a weight and must have a bias.
struct Kind {
  BlockKind kind;
  const char *weights, *biases;
  std::vector<int> optional, biased;
};

Kind kind_named(const std::string& name) {
  if (name == "large")
    return {BlockKind::large,
            "norm: D, q k: QK D, v o: VV D, i f: NH D, head_norm: VV, out: D VV, ffn_norm: D, gate up: U D, down: D U",
            "norm: D, q k: QK, v o: VV, i f: NH, head_norm: VV, out: D, ffn_norm: D, gate up: U, down: D",
            {},
            {}};
  if (name == "mlstm")
    return {BlockKind::mlstm,
            "norm: D, up: 2*I D, conv: I 1 K, q k v: G J J, i f: NH 3*I, head_norm skip: I, down: D I",
            "norm: D, up: 2*I, conv: I, q k v: G*J, i f: NH, head_norm skip: I, down: D",
            {},
            {kMConv}};
  if (name == "slstm")
    return {BlockKind::slstm,
            "norm: D, conv: D 1 K, i f z o: NH DH DH, R: NH 4*DH DH, group_norm ffn_norm: D, up: 2*U D, down: D U",
            "norm: D, conv: D, i f z o: D, R: 4*D, group_norm ffn_norm: D, up: 2*U, down: D",
            {kSConv, kSGroupNorm, kSFfnNorm, kSFfnUp, kSFfnDown},
            {kSRecurrent}};
  throw nb::value_error(("no kind of block is called " + name).c_str());
}

bool contains(const std::vector<int>& all, std::size_t j) {
  return std::find(all.begin(), all.end(), static_cast<int>(j)) != all.end();
}

// Smallest number of rows that one thread takes through the whole model alone; see kManyRows in few_rows.cpp.
constexpr Index kRowsWorthAThread = 16;

class Decoder {
 public:
  Decoder(In embedding, In head, std::optional<In> out_norm, std::optional<In> out_norm_bias, std::vector<Block> blocks,
          bool rms, float norm_eps, float cell_eps, float gate_cap, float logit_cap, const std::string& activation,
          std::int32_t reset_token)
      : model_{0, 0, rms, norm_eps, cell_eps, gate_cap, logit_cap, activation_named(activation), reset_token,
               embedding.data(), head.data(), {}, {}},
        held_{embedding, head} {
    const Shapes shapes("decoder", "embedding head: V D, out_norm out_norm_bias: D");
    Sizes sizes(shapes);
    add(sizes, embedding);
    add(sizes, head);
    model_.out_norm = {hold(sizes, out_norm), hold(sizes, out_norm_bias)};
    sizes.read();
    sizes.expect_positive({"D", "V"});
    model_.d = sizes["D"], model_.V = sizes["V"];
    for (const auto& [name, layers] : blocks) hold_block(kind_named(name), layers);
  }

  Index state_floats() const { return model_.state(); }

  void step(const Tokens& tokens, const In& before, Out after, Out logits, const std::optional<In>& added,
            int threads) const {
    static const Shapes shapes("step", "tokens: B, before after: B N, logits: B V, added: B D");
    Sizes sizes(shapes);
    add(sizes, tokens);
    add(sizes, before);
    add(sizes, after);
    add(sizes, logits);
    if (added) add(sizes, *added);
    sizes.read();
    const Index rows = sizes["B"], d = model_.d, V = model_.V, width = model_.state();
    sizes.expect({{"N", width}, {"V", V}, {"D", d}});
    if (before.data() < after.data() + after.size() && after.data() < before.data() + before.size())
      throw nb::value_error("after shares memory with before, which is read while after is written; give it its own");
    for (Index r = 0; r < rows; ++r)
      if (tokens.data()[r] < 0 || tokens.data()[r] >= V)
        throw nb::value_error(("token " + std::to_string(tokens.data()[r]) + " in row " + std::to_string(r) +
                               " is outside [0, " + std::to_string(V) + ")")
                                  .c_str());
    nb::gil_scoped_release release;
    // Many rows are divided among the threads, which meet at the end of the step alone; a few share each product.
    const Index parts = std::clamp<Index>(rows / kRowsWorthAThread, 1, std::max(threads, 1));
    parallel_for(parts, static_cast<int>(parts), [&](Index part) {
      const Index first = rows * part / parts;
      decode_step(model_, rows * (part + 1) / parts - first, tokens.data() + first,
                  added ? added->data() + first * d : nullptr, before.data() + first * width,
                  after.data() + first * width, logits.data() + first * V, parts > 1 ? 1 : threads);
    });
  }

 private:
  template <class Array>
  static void add(Sizes& sizes, const Array& array) {
    sizes.add(array, 0);
    sizes.next();
  }

  // The next array of the shapes, which the decoder reads as long as it lives; null if it is None.
  const float* hold(Sizes& sizes, const std::optional<In>& array) {
    if (array) held_.push_back(*array);
    if (array) sizes.add(*array, 0);
    sizes.next();
    return array ? array->data() : nullptr;
  }

  void hold_block(const Kind& kind, const std::vector<Layer>& layers) {
    const std::string name = "block " + std::to_string(model_.blocks.size());
    const Shapes shapes(name.c_str(), std::string(kind.weights) + ", " + kind.biases);
    if (layers.size() * 2 != shapes.arguments.size())
      throw nb::value_error((name + " must have one (weight, bias) pair per layer; see decode.h").c_str());
    DecodeBlock& b = model_.blocks.emplace_back(DecodeBlock{kind.kind, 0, 0, 0, 0, 0, 0, 0, {}});
    b.layers.resize(layers.size());
    Sizes sizes(shapes);
    for (std::size_t j = 0; j < layers.size(); ++j) b.layers[j].weight = hold(sizes, layers[j].first);
    for (std::size_t j = 0; j < layers.size(); ++j) b.layers[j].bias = hold(sizes, layers[j].second);
    const bool ffn = kind.kind == BlockKind::slstm && b.layers[kSFfnUp].weight;
    const bool convolves = kind.kind == BlockKind::slstm && b.layers[kSConv].weight;
    for (std::size_t j = 0; j < layers.size(); ++j) {
      const bool needed = !contains(kind.optional, j) || (ffn && (j == kSFfnNorm || j == kSFfnDown));
      const bool biased = contains(kind.biased, j) || (convolves && j == kSConv);
      if ((needed && !b.layers[j].weight) || (biased && !b.layers[j].bias))
        throw nb::value_error(("layer " + std::to_string(j) + " of " + name + " has no " +
                               (b.layers[j].weight ? "bias" : "weight") + "; see decode.h")
                                  .c_str());
    }
    sizes.read();
    sizes.expect({{"D", model_.d}});
    if (kind.kind == BlockKind::slstm) {
      sizes.expect_positive({"NH", "DH"});
      b.heads = sizes["NH"], b.DK = sizes["DH"], b.width = model_.d;
      sizes.expect({{"D", b.heads * b.DK}});
      b.taps = convolves ? sizes["K"] : 0, b.U = ffn ? sizes["U"] : 0;
      if (convolves) sizes.expect_positive({"K"});
    } else if (kind.kind == BlockKind::mlstm) {
      sizes.expect_positive({"NH", "K", "G", "J"});
      b.heads = sizes["NH"], b.width = sizes["I"], b.taps = sizes["K"], b.part = sizes["J"];
      sizes.expect({{"I", sizes["G"] * b.part}});
      b.DK = b.DV = of_heads(name, b.width, b.heads);
    } else {
      sizes.expect_positive({"NH", "U"});
      b.heads = sizes["NH"], b.U = sizes["U"];
      b.DK = of_heads(name, sizes["QK"], b.heads), b.DV = of_heads(name, sizes["VV"], b.heads);
    }
  }

  static Index of_heads(const std::string& name, Index width, Index heads) {
    if (width < heads || width % heads)
      throw nb::value_error((name + ": " + std::to_string(width) + " numbers are not those of " +
                             std::to_string(heads) + " heads")
                                .c_str());
    return width / heads;
  }

  DecodeModel model_;
  std::vector<In> held_;
};

}  // namespace
}  // namespace mlxhog

void bind_decode(nb::module_& parent) {
  using namespace nb::literals;
  using namespace mlxhog;
  nb::class_<Decoder>(parent, "Decoder", "One token of a model for a few sequences, from the memory of its parameters.")
      .def(nb::init<In, In, std::optional<In>, std::optional<In>, std::vector<Block>, bool, float, float, float, float,
                    const std::string&, std::int32_t>(),
           nb::kw_only(), A("embedding"), A("head"), A("out_norm").none(), A("out_norm_bias").none() = nb::none(),
           A("blocks"), "rms"_a, "norm_eps"_a, "cell_eps"_a, "gate_cap"_a = 0.0f, "logit_cap"_a = 0.0f,
           "activation"_a, "reset_token"_a,
           "blocks: the kind of each, large, mlstm or slstm, and a (weight, bias) of each of its layers.")
      .def_prop_ro("state_floats", &Decoder::state_floats, "Floats of one sequence's states.")
      .def("step", &Decoder::step, A("tokens"), A("before"), A("after"), A("logits"), nb::kw_only(),
           A("added").none() = nb::none(), "threads"_a,
           "Read tokens (B,) int32 after the states `before` (B, state_floats); write `after`, which must not be\n"
           "`before`, and logits (B, V). `added` (B, d) is added to the embedded tokens.");
}
