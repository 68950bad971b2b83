// Python names of the operators around the cells: norms, gates, the convolution and block-diagonal maps.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "activation.h"
#include "arguments.h"
#include "block_diagonal.h"
#include "conv.h"
#include "long_conv.h"
#include "norm.h"
#include "shapes.h"
#include "small_blocks.h"

namespace mlxhog {
namespace {

// Rows of whole heads, each as wide as x's last axis D; w is as wide as a row.
HeadRows head_rows(const Sizes& sizes, float eps) {
  const Index D = sizes["D"], W = sizes["W"], N = sizes["N"];
  if (D == 0 || W % D || (W == 0 ? N : N % (W / D)))
    throw nb::value_error(("w has " + std::to_string(W) + " numbers, expected those of whole heads of " +
                           std::to_string(D) + ", of which there are " + std::to_string(N))
                              .c_str());
  return {W ? N / (W / D) : 0, W / D, D, eps};
}

// Likewise, where the other arrays have the heads of a row joined.
HeadRows joined_rows(Sizes& sizes, float eps) {
  const HeadRows s = head_rows(sizes, eps);
  sizes.expect({{"M", s.rows}});
  return s;
}

Conv conv_arguments(const Sizes& sizes, bool silu, Floats x, Floats w, Floats b, MaybeFloats state,
                    Maybe<const std::uint8_t> starts) {
  sizes.expect_positive({"S", "K"});
  return {sizes["B"], sizes["S"], sizes["C"], sizes["K"], silu, x, w, b, state, starts};
}

LongConv long_conv_shape(const Sizes& sizes) {
  const auto s = sizes.as<LongConv>("B", "S", "C", "J");
  if (s.J < s.S)
    throw nb::value_error(("f has " + std::to_string(s.J) + " taps, expected one for each of x's " +
                           std::to_string(s.S) + " positions or more")
                              .c_str());
  return s;
}

// The sizes of map j: blocks that split rows of W numbers.
template <class Map>
Map blocks(const Sizes& sizes, std::size_t j) {
  Map map{};
  map.groups = sizes.at("G_j", j), map.out = sizes.at("OUT_j", j), map.in = sizes.at("IN_j", j);
  if (map.groups * map.in != sizes["W"])
    throw nb::value_error(("weight has " + std::to_string(map.groups) + " blocks of " + std::to_string(map.in) +
                           " inputs, x has " + std::to_string(sizes["W"]))
                              .c_str());
  return map;
}

}  // namespace
}  // namespace mlxhog

void bind_layers(nb::module_& m) {
  using namespace nb::literals;
  using namespace mlxhog;
  def(m, "rms_norm", "x: N... D, w: D, out: N... D", "out = w * x / sqrt(mean(x^2) + eps) over the last axis.",
      [](Sizes& sizes, Floats x, Floats w, Result out, float eps, int threads) {
        rms_norm_forward(sizes["N"], sizes["D"], eps, x, w, out, threads);
      }, "eps"_a);
  def(m, "rms_norm_grad", "x: N... D, w: D, d_out dx: N... D, dw: D", "",
      [](Sizes& sizes, Floats x, Floats w, Floats d_out, Result dx, Result dw, float eps, int threads) {
        rms_norm_backward(sizes["N"], sizes["D"], eps, x, w, d_out, dx, dw, threads);
      }, "eps"_a);
  def(m, "layer_norm", "x: N... D, w: W, out: N... D",
      "out = w * LayerNorm(x) over x's last axis; w holds one or more heads of that width.",
      [](Sizes& sizes, Floats x, Floats w, Result out, float eps, int threads) {
        const HeadRows s = head_rows(sizes, eps);
        layer_norm_forward(s.rows, s.heads, s.width, eps, x, w, out, threads);
      }, "eps"_a);
  def(m, "layer_norm_grad", "x: N... D, w: W, d_out: M... E, dx: N... D, dw: W", "d_out as x, or its heads joined.",
      [](Sizes& sizes, Floats x, Floats w, Floats d_out, Result dx, Result dw, float eps, int threads) {
        const HeadRows s = head_rows(sizes, eps);
        const bool joined = sizes["E"] != s.width;
        sizes.expect({{"E", joined ? sizes["W"] : s.width}, {"M", joined ? s.rows : sizes["N"]}});
        layer_norm_backward(s.rows, s.heads, s.width, eps, x, w, d_out, dx, dw, threads);
      }, "eps"_a);
  def(m, "head_norm_gate", "h: N... D, o: M... W, w: W, out: M... W",
      "out = sigmoid(o) * w * LayerNorm(h) within each head (h's last axis).",
      [](Sizes& sizes, Floats h, Floats o, Floats w, Result out, float eps, int threads) {
        head_norm_gate_forward(joined_rows(sizes, eps), h, o, w, out, threads);
      }, "eps"_a);
  def(m, "head_norm_gate_grad", "h: N... D, o: M... W, w: W, d_out: M... W, dh: N... D, do: M... W, dw: W", "",
      [](Sizes& sizes, Floats h, Floats o, Floats w, Floats d_out, Result dh, Result d_o, Result dw, float eps,
         int threads) {
        head_norm_gate_backward(joined_rows(sizes, eps), h, o, w, d_out, dh, d_o, dw, threads);
      }, "eps"_a);
  def(m, "head_norm_skip_gate", "h: N... D, c z: M... W, w skip: W, out: M... W",
      "out = (w * LayerNorm(h) + skip * c) * silu(z), normalised within each head (h's last axis).",
      [](Sizes& sizes, Floats h, Floats c, Floats z, Floats w, Floats skip, Result out, float eps, int threads) {
        head_norm_skip_gate_forward(joined_rows(sizes, eps), {h, c, z, w, skip}, out, threads);
      }, "eps"_a);
  def(m, "head_norm_skip_gate_grad",
      "h: N... D, c z: M... W, w skip: W, d_out: M... W, dh: N... D, dc dz: M... W, dw dskip: W", "",
      [](Sizes& sizes, Floats h, Floats c, Floats z, Floats w, Floats skip, Floats d_out, Result dh, Result dc,
         Result dz, Result dw, Result dskip, float eps, int threads) {
        head_norm_skip_gate_backward(joined_rows(sizes, eps), {h, c, z, w, skip}, d_out, {dh, dc, dz, dw, dskip},
                                     threads);
      }, "eps"_a);
  def(m, "activate", "activation, x out: N...",
      "out = activation(x); gelu, gelu_tanh, silu, relu, relu^2, sigmoid, selu or softplus.",
      [](Sizes& sizes, const std::string& activation, Floats x, Result out, int threads) {
        activate_forward(activation_named(activation), sizes["N"], x, out, threads);
      });
  def(m, "activate_grad", "activation, x d_out dx: N...", "",
      [](Sizes& sizes, const std::string& activation, Floats x, Floats d_out, Result dx, int threads) {
        activate_backward(activation_named(activation), sizes["N"], x, d_out, dx, threads);
      });
  def(m, "glu", "activation, gate up out: N...", "out = activation(gate) * up; the activations of `activate`.",
      [](Sizes& sizes, const std::string& activation, Floats gate, Floats up, Result out, int threads) {
        glu_forward(activation_named(activation), sizes["N"], gate, up, out, threads);
      });
  def(m, "glu_grad", "activation, gate up d_out d_gate d_up: N...", "",
      [](Sizes& sizes, const std::string& activation, Floats gate, Floats up, Floats d_out, Result d_gate,
         Result d_up, int threads) {
        glu_backward(activation_named(activation), sizes["N"], gate, up, d_out, d_gate, d_up, threads);
      });
  def(m, "swiglu", "gate up out: N...", "out = silu(gate) * up.",
      [](Sizes& sizes, Floats gate, Floats up, Result out, int threads) {
        swiglu_forward(sizes["N"], gate, up, out, threads);
      });
  def(m, "swiglu_grad", "gate up d_out d_gate d_up: N...", "",
      [](Sizes& sizes, Floats gate, Floats up, Floats d_out, Result d_gate, Result d_up, int threads) {
        swiglu_backward(sizes["N"], gate, up, d_out, d_gate, d_up, threads);
      });
  def(m, "soft_cap", "x out: N...", "out = cap * tanh(x / cap).",
      [](Sizes& sizes, Floats x, Result out, float cap, int threads) {
        soft_cap_forward(sizes["N"], cap, x, out, threads);
      }, "cap"_a);
  def(m, "soft_cap_grad", "out d_out dx: N...", "dx of soft_cap from its result.",
      [](Sizes& sizes, Floats out, Floats d_out, Result dx, float cap, int threads) {
        soft_cap_backward(sizes["N"], cap, out, d_out, dx, threads);
      }, "cap"_a);
  const std::string conv = "x: B S C, w: C 1 K, b: C, state: B K-1 C, starts: B S";
  def(m, "causal_conv", conv + ", y: B S C, last: B K-1 C",
      "y[t] = b + sum_j w[j] x[t - (K - 1) + j], then SiLU if wanted. state and last are the inputs before the first "
      "and up to the last position; starts uint8, the first token of each document.",
      [](Sizes& sizes, Floats x, Floats w, Floats b, MaybeFloats state, Maybe<const std::uint8_t> starts, Result y,
         Result last, bool silu, int threads) {
        causal_conv_forward(conv_arguments(sizes, silu, x, w, b, state, starts), y, last, threads);
      }, "silu"_a);
  def(m, "causal_conv_grad",
      conv + ", dy: B S C, d_last: B K-1 C, dx: B S C, dw: C 1 K, db: C, d_state: B K-1 C", "",
      [](Sizes& sizes, Floats x, Floats w, Floats b, MaybeFloats state, Maybe<const std::uint8_t> starts, Floats dy,
         MaybeFloats d_last, Result dx, Result dw, Result db, MaybeResult d_state, bool silu, int threads) {
        causal_conv_backward(conv_arguments(sizes, silu, x, w, b, state, starts), dy, d_last,
                             {dx, dw, db, d_state}, threads);
      }, "silu"_a);
  m.attr("LONG_CONV_DIRECT") = kLongConvDirect;
  def(m, "long_conv", "x: B S C, f: C J, y: B S C",
      "y[t] = sum over j <= t of f[j] x[t - j]. J >= S; S^2 operations, so for S up to LONG_CONV_DIRECT.",
      [](Sizes& sizes, Floats x, Floats f, Result y, int threads) {
        long_conv_forward(long_conv_shape(sizes), x, f, y, threads);
      });
  def(m, "long_conv_grad", "x: B S C, f: C J, dy dx: B S C, df: C J", "",
      [](Sizes& sizes, Floats x, Floats f, Floats dy, Result dx, Result df, int threads) {
        long_conv_backward(long_conv_shape(sizes), x, f, dy, dx, df, threads);
      });
  m.def("is_small_block", &is_small_block, "out"_a, "inner"_a,
        "Whether block_diagonal has a kernel for blocks (out, inner); the others are matrix products.");
  const std::string maps = "x: N... W, weights: G_j OUT_j IN_j, ";
  def(m, "block_diagonal", maps + "biases: G_j*OUT_j, outs: N... G_j*OUT_j",
      "Slice g of out_j is slice g of x times W_j[g]^T, plus b_j.",
      [](Sizes& sizes, Floats x, std::vector<Floats> weights, std::vector<MaybeFloats> biases,
         std::vector<Result> outs, int threads) {
        std::vector<DiagonalForward> maps;
        for (std::size_t j = 0; j < weights.size(); ++j) {
          DiagonalForward& map = maps.emplace_back(blocks<DiagonalForward>(sizes, j));
          map.weight = weights[j], map.bias = biases[j], map.y = outs[j];
        }
        block_diagonal_forward(sizes["N"], sizes["W"], x, maps, threads);
      });
  def(m, "block_diagonal_grad",
      maps + "d_outs: N... G_j*OUT_j, dx: N... W, d_weights: G_j OUT_j IN_j, d_biases: G_j*OUT_j", "",
      [](Sizes& sizes, Floats x, std::vector<Floats> weights, std::vector<Floats> d_outs, MaybeResult dx,
         std::vector<Result> d_weights, std::vector<MaybeResult> d_biases, int threads) {
        std::vector<DiagonalBackward> maps;
        for (std::size_t j = 0; j < weights.size(); ++j) {
          DiagonalBackward& map = maps.emplace_back(blocks<DiagonalBackward>(sizes, j));
          map.weight = weights[j], map.dy = d_outs[j], map.d_weight = d_weights[j], map.d_bias = d_biases[j];
        }
        block_diagonal_backward(sizes["N"], sizes["W"], x, maps, dx, threads);
      });
}
