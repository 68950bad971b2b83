// The Python class of the native decoding step: it holds the parameters' arrays, checks sizes and token ids,
// and releases the GIL while a step runs.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "decode_large.h"
#include "decode_v1.h"
#include "pool.h"

namespace nb = nanobind;

namespace mlxhog {
namespace {

using Tokens = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Layer = std::pair<In, std::optional<In>>;

template <class Array>
void expect(const std::string& name, const Array& a, Index wanted) {
  if (static_cast<Index>(a.size()) != wanted)
    throw nb::value_error((name + " has " + std::to_string(a.size()) + " elements, expected " +
                           std::to_string(wanted) + "; give every array the shape of its operator's docstring")
                              .c_str());
}

// Refuses sizes that no model has: a product of three others does not wrap.
void expect_possible(std::initializer_list<std::pair<const char*, Index>> sizes) {
  constexpr Index kMost = Index{1} << 20;
  for (const auto& [name, got] : sizes)
    if (got < 0 || got > kMost)
      throw nb::value_error((std::string(name) + " is " + std::to_string(got) + ", expected at most " +
                             std::to_string(kMost))
                                .c_str());
}

// Refuses sizes below 1: the step divides by some of them.
void expect_positive(std::initializer_list<std::pair<const char*, Index>> sizes) {
  for (const auto& [name, wanted] : sizes)
    if (wanted < 1)
      throw nb::value_error((std::string(name) + " is " + std::to_string(wanted) + ", expected at least 1").c_str());
}

void expect_parts(const char* whole, Index size, const char* parts, Index count) {
  if (size % count)
    throw nb::value_error((std::string(whole) + " is " + std::to_string(size) + ", expected a multiple of " + parts +
                           ", " + std::to_string(count))
                              .c_str());
}

// Arrays that a decoder reads as long as it lives.
class Held {
 public:
  const float* hold(const std::string& name, const In& array, Index wanted) {
    expect(name, array, wanted);
    arrays_.push_back(array);
    return array.data();
  }

 private:
  std::vector<In> arrays_;
};

// Smallest number of rows that one thread takes through the whole model alone; see kManyRows in few_rows.cpp.
constexpr Index kRowsWorthAThread = 16;

// Checks the arrays of a step, and runs it without the GIL: run(first row, row count, threads). Many rows are divided
// among the threads, which meet at the end of the step alone; a few share each product of the model.
template <class Run>
void checked_step(const Tokens& tokens, const std::optional<In>& added, const In& before, Out& after, Out& logits,
                  Index state_floats, Index d, Index V, int threads, const Run& run) {
  const Index rows = static_cast<Index>(tokens.size());
  if (added) expect("added", *added, rows * d);
  expect("before", before, rows * state_floats);
  expect("after", after, rows * state_floats);
  expect("logits", logits, rows * V);
  for (Index r = 0; r < rows; ++r)
    if (tokens.data()[r] < 0 || tokens.data()[r] >= V)
      throw nb::value_error(("token " + std::to_string(tokens.data()[r]) + " in row " + std::to_string(r) +
                             " is outside [0, " + std::to_string(V) + ")")
                                .c_str());
  nb::gil_scoped_release release;
  const Index parts = std::clamp<Index>(rows / kRowsWorthAThread, 1, std::max(threads, 1));
  parallel_for(parts, static_cast<int>(parts), [&](Index part) {
    const Index first = rows * part / parts;
    run(first, rows * (part + 1) / parts - first, parts > 1 ? 1 : threads);
  });
}

class Decoder {
 public:
  Decoder(Index d, Index heads, Index DK, Index DV, Index U, Index V, float norm_eps, float eps, float gate_cap,
          float logit_cap, std::int32_t reset_token, In embedding, std::vector<std::vector<Layer>> blocks,
          std::optional<In> out_norm, std::optional<In> out_norm_bias, In head)
      : model_{d, heads, DK, DV, U, V, norm_eps, eps, gate_cap, logit_cap, reset_token, nullptr, {}, {}, nullptr} {
    expect_positive({{"d", d}, {"heads", heads}, {"DK", DK}, {"DV", DV}, {"U", U}, {"V", V}});
    expect_possible({{"d", d}, {"heads", heads}, {"DK", DK}, {"DV", DV}, {"U", U}, {"V", V}});
    model_.embedding = held_.hold("embedding", embedding, V * d);
    const Index qk = heads * DK, v = heads * DV;
    const std::pair<Index, Index> sizes[kBlockLayers] = {  // (out, in); a norm has no in
        {d, 1}, {qk, d}, {qk, d}, {v, d}, {v, d}, {heads, d}, {heads, d}, {v, 1}, {d, v}, {d, 1}, {U, d}, {U, d}, {d, U}};
    for (const std::vector<Layer>& block : blocks) {
      if (block.size() != kBlockLayers)
        throw nb::value_error("a block must have one (weight, bias) pair per layer; see decode_large.h");
      auto& layers = model_.blocks.emplace_back();
      for (std::size_t j = 0; j < kBlockLayers; ++j) {
        const std::string name = "layer " + std::to_string(j) + " of block " + std::to_string(model_.blocks.size() - 1);
        layers[j].weight = held_.hold(name, block[j].first, sizes[j].first * sizes[j].second);
        if (block[j].second) layers[j].bias = held_.hold(name + " (bias)", *block[j].second, sizes[j].first);
      }
    }
    if (out_norm) model_.out_norm.weight = held_.hold("out_norm", *out_norm, d);
    if (out_norm_bias) model_.out_norm.bias = held_.hold("out_norm_bias", *out_norm_bias, d);
    model_.head = held_.hold("head", head, V * d);
  }

  Index state_floats() const { return static_cast<Index>(model_.blocks.size()) * model_.block_state(); }

  void step(const Tokens& tokens, const In& before, Out after, Out logits, const std::optional<In>& added,
            int threads) const {
    const Index width = state_floats(), V = model_.V;
    const auto run = [&](Index first, Index rows, int inside) {
      decode_step(model_, rows, tokens.data() + first, added ? added->data() + first * model_.d : nullptr,
                  before.data() + first * width, after.data() + first * width, logits.data() + first * V, inside);
    };
    checked_step(tokens, added, before, after, logits, width, model_.d, V, threads, run);
  }

 private:
  DecodeModel model_;
  Held held_;
};

class V1Decoder {
 public:
  using MaybeLayer = std::pair<std::optional<In>, std::optional<In>>;
  using Block = std::pair<bool, std::vector<MaybeLayer>>;

  V1Decoder(Index d, Index V, Index I, Index m_heads, Index m_K, Index groups, Index s_heads, Index s_K, Index U,
            const std::string& activation, float norm_eps, float cell_eps, std::int32_t reset_token, In embedding,
            std::vector<Block> blocks, std::optional<In> out_norm, In head)
      : model_{d, V, I, m_heads, m_K, groups, s_heads, s_K, U, activation_named(activation), norm_eps, cell_eps,
               reset_token, nullptr, {}, nullptr, nullptr} {
    expect_positive({{"d", d}, {"V", V}});
    expect_possible({{"d", d}, {"V", V}, {"I", I}, {"mlstm_heads", m_heads}, {"mlstm_taps", m_K}, {"groups", groups},
                     {"slstm_heads", s_heads}, {"slstm_taps", s_K}, {"U", U}});
    model_.embedding = held_.hold("embedding", embedding, V * d);
    const Index block = groups ? I / groups : 0, DH = s_heads ? d / s_heads : 0;
    using Sizes = std::pair<Index, Index>;  // elements of weight and bias
    const std::array<Sizes, kMLayers> mlstm = {Sizes{d, 0}, {2 * I * d, 2 * I}, {I * m_K, I}, {I * block, I},
                                               {I * block, I}, {I * block, I}, {m_heads * 3 * I, m_heads},
                                               {m_heads * 3 * I, m_heads}, {I, 0}, {I, 0}, {d * I, d}};
    const std::array<Sizes, kSLayers> slstm = {Sizes{d, 0}, {d * s_K, d}, {d * DH, d}, {d * DH, d}, {d * DH, d},
                                               {d * DH, d}, {4 * d * DH, 4 * d}, {d, 0}, {d, 0}, {2 * U * d, 2 * U},
                                               {d * U, d}};
    for (const auto& [is_slstm, layers] : blocks) {
      if (layers.size() != kMLayers)
        throw nb::value_error("a block must have one (weight, bias) pair per layer; see decode_v1.h");
      V1Block& made = model_.blocks.emplace_back(V1Block{is_slstm, {}});
      for (std::size_t j = 0; j < kMLayers; ++j) {
        const auto& [weights, biases] = is_slstm ? slstm[j] : mlstm[j];
        const std::string name = "layer " + std::to_string(j) + " of block " + std::to_string(model_.blocks.size() - 1);
        if (layers[j].first) made.layers[j].weight = held_.hold(name, *layers[j].first, weights);
        if (layers[j].second) made.layers[j].bias = held_.hold(name + " (bias)", *layers[j].second, biases);
      }
      if (is_slstm) expect_slstm(made);
      else expect_mlstm(made);
    }
    if (out_norm) model_.out_norm = held_.hold("out_norm", *out_norm, d);
    model_.head = held_.hold("head", head, V * d);
  }

  Index state_floats() const {
    Index total = 0;
    for (const V1Block& block : model_.blocks) total += model_.block_state(block);
    return total;
  }

  void step(const Tokens& tokens, const In& before, Out after, Out logits, const std::optional<In>& added,
            int threads) const {
    if (before.data() < after.data() + after.size() && after.data() < before.data() + before.size())
      throw nb::value_error("after shares memory with before, which is read while after is written; give it its own");
    const Index width = state_floats(), V = model_.V;
    const auto run = [&](Index first, Index rows, int inside) {
      decode_v1_step(model_, rows, tokens.data() + first, added ? added->data() + first * model_.d : nullptr,
                     before.data() + first * width, after.data() + first * width, logits.data() + first * V, inside);
    };
    checked_step(tokens, added, before, after, logits, width, model_.d, V, threads, run);
  }

 private:
  void expect_mlstm(const V1Block& block) const {
    expect_positive({{"I", model_.I}, {"mlstm_heads", model_.m_heads}, {"mlstm_taps", model_.m_K},
                     {"groups", model_.groups}});
    expect_parts("I", model_.I, "mlstm_heads", model_.m_heads);
    expect_parts("I", model_.I, "groups", model_.groups);
    for (std::size_t j = 0; j < kMLayers; ++j) expect_layer(block, j, j == kMConv);
  }

  void expect_slstm(const V1Block& block) const {
    expect_positive({{"slstm_heads", model_.s_heads}});
    expect_parts("d", model_.d, "slstm_heads", model_.s_heads);
    if (model_.s_K != 0 || block.layers[kSConv].weight) {
      expect_positive({{"slstm_taps", model_.s_K}});
      expect_layer(block, kSConv, true);
    }
    for (const std::size_t j : {kSNorm, kSIgate, kSFgate, kSZgate, kSOgate, kSRecurrent})
      expect_layer(block, j, j == kSRecurrent);
    if (!block.layers[kSFfnUp].weight) return;
    expect_positive({{"U", model_.U}});
    for (const std::size_t j : {kSFfnNorm, kSFfnDown}) expect_layer(block, j, false);
  }

  void expect_layer(const V1Block& block, std::size_t j, bool biased) const {
    const DecodeLayer& layer = block.layers[j];
    if (layer.weight && (layer.bias || !biased)) return;
    throw nb::value_error(("layer " + std::to_string(j) + " of block " + std::to_string(model_.blocks.size() - 1) +
                           " has no " + (layer.weight ? "bias" : "weight") + "; see decode_v1.h")
                              .c_str());
  }

  V1Model model_;
  Held held_;
};

}  // namespace
}  // namespace mlxhog

void bind_decode(nb::module_& parent) {
  using namespace nb::literals;
  using namespace mlxhog;
  nb::class_<Decoder>(parent, "XlstmLargeDecoder",
                      "One token of xLSTM Large for a few sequences, from the memory of its parameters.")
      .def(nb::init<Index, Index, Index, Index, Index, Index, float, float, float, float, std::int32_t, In,
                    std::vector<std::vector<Layer>>, std::optional<In>, std::optional<In>, In>(),
           nb::kw_only(), "d"_a, "heads"_a, "DK"_a, "DV"_a, "U"_a, "V"_a, "norm_eps"_a, "eps"_a, "gate_cap"_a,
           "logit_cap"_a, "reset_token"_a, A("embedding"), A("blocks"), A("out_norm").none(),
           A("out_norm_bias").none(), A("head"))
      .def_prop_ro("state_floats", &Decoder::state_floats, "Floats of one sequence's states.")
      .def("step", &Decoder::step, A("tokens"), A("before"), A("after"), A("logits"), nb::kw_only(),
           A("added").none() = nb::none(), "threads"_a,
           "Read tokens (B,) int32 after the states `before` (B, state_floats); write `after` and logits (B, V).\n"
           "`added` (B, d) is added to the embedded tokens.");
  nb::class_<V1Decoder>(parent, "XlstmV1Decoder", "As XlstmLargeDecoder, of the original xLSTM stack.")
      .def(nb::init<Index, Index, Index, Index, Index, Index, Index, Index, Index, const std::string&, float, float,
                    std::int32_t, In, std::vector<V1Decoder::Block>, std::optional<In>, In>(),
           nb::kw_only(), "d"_a, "V"_a, "I"_a, "mlstm_heads"_a, "mlstm_taps"_a, "groups"_a, "slstm_heads"_a,
           "slstm_taps"_a, "U"_a, "activation"_a, "norm_eps"_a, "cell_eps"_a, "reset_token"_a, A("embedding"),
           A("blocks"), A("out_norm").none(), A("head"))
      .def_prop_ro("state_floats", &V1Decoder::state_floats, "Floats of one sequence's states.")
      .def("step", &V1Decoder::step, A("tokens"), A("before"), A("after"), A("logits"), nb::kw_only(),
           A("added").none() = nb::none(), "threads"_a, "As XlstmLargeDecoder.step; `after` must not be `before`.");
}
