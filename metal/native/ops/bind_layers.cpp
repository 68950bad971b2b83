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
#include "gated_norm.h"
#include "long_conv.h"
#include "norm.h"
#include "small_blocks.h"

namespace mlxhog {
namespace {

// Rows of whole heads, each as wide as x's last axis.
HeadRows head_rows(const char* name, const In& x, const In& w, float eps) {
  const Index width = last(name, x), d = size(w);
  if (width == 0 || d % width)
    throw nb::value_error((std::string("w must hold whole heads of ") + name + "'s last axis").c_str());
  const Index n = d ? size(x) / d : 0;
  expect(name, x, {n, d});
  return {n, d / width, width, eps};
}

void rms_norm(const In& x, const In& w, Out out, float eps, int threads) {
  const Index d = last("x", x), n = rows("x", x);
  expect("w", w, d);
  expect("out", out, {n, d});
  nb::gil_scoped_release release;
  rms_norm_forward(n, d, eps, x.data(), w.data(), out.data(), threads);
}

void rms_norm_grad(const In& x, const In& w, const In& d_out, Out dx, Out dw, float eps, int threads) {
  const Index d = last("x", x), n = rows("x", x);
  expect("w", w, d);
  expect("d_out", d_out, {n, d});
  expect("dx", dx, {n, d});
  expect("dw", dw, d);
  nb::gil_scoped_release release;
  rms_norm_backward(n, d, eps, x.data(), w.data(), d_out.data(), dx.data(), dw.data(), threads);
}

void layer_norm(const In& x, const In& w, Out out, float eps, int threads) {
  const HeadRows s = head_rows("x", x, w, eps);
  expect("out", out, size(x));
  nb::gil_scoped_release release;
  layer_norm_forward(s.rows, s.heads, s.width, eps, x.data(), w.data(), out.data(), threads);
}

void layer_norm_grad(const In& x, const In& w, const In& d_out, Out dx, Out dw, float eps, int threads) {
  const HeadRows s = head_rows("x", x, w, eps);
  expect("d_out", d_out, size(x));
  expect("dx", dx, size(x));
  expect("dw", dw, size(w));
  nb::gil_scoped_release release;
  layer_norm_backward(s.rows, s.heads, s.width, eps, x.data(), w.data(), d_out.data(), dx.data(), dw.data(),
                      threads);
}

void head_norm_gate(const In& h, const In& o, const In& w, Out out, float eps, int threads) {
  const HeadRows s = head_rows("h", h, w, eps);
  expect("o", o, size(h));
  expect("out", out, size(h));
  nb::gil_scoped_release release;
  head_norm_gate_forward(s, h.data(), o.data(), w.data(), out.data(), threads);
}

void head_norm_gate_grad(const In& h, const In& o, const In& w, const In& d_out, Out dh, Out d_o, Out dw,
                         float eps, int threads) {
  const HeadRows s = head_rows("h", h, w, eps);
  expect("o", o, size(h));
  expect("d_out", d_out, size(h));
  expect("dh", dh, size(h));
  expect("do", d_o, size(h));
  expect("dw", dw, size(w));
  nb::gil_scoped_release release;
  head_norm_gate_backward(s, h.data(), o.data(), w.data(), d_out.data(), dh.data(), d_o.data(), dw.data(), threads);
}

SkipGate skip_gate_inputs(const In& h, const In& c, const In& z, const In& w, const In& skip) {
  expect("c", c, size(h));
  expect("z", z, size(h));
  expect("skip", skip, size(w));
  return {h.data(), c.data(), z.data(), w.data(), skip.data()};
}

void head_norm_skip_gate(const In& h, const In& c, const In& z, const In& w, const In& skip, Out out, float eps,
                         int threads) {
  const HeadRows s = head_rows("h", h, w, eps);
  const SkipGate in = skip_gate_inputs(h, c, z, w, skip);
  expect("out", out, size(h));
  nb::gil_scoped_release release;
  head_norm_skip_gate_forward(s, in, out.data(), threads);
}

void head_norm_skip_gate_grad(const In& h, const In& c, const In& z, const In& w, const In& skip, const In& d_out,
                              Out dh, Out dc, Out dz, Out dw, Out dskip, float eps, int threads) {
  const HeadRows s = head_rows("h", h, w, eps);
  const SkipGate in = skip_gate_inputs(h, c, z, w, skip);
  expect("d_out", d_out, size(h));
  expect("dh", dh, size(h));
  expect("dc", dc, size(h));
  expect("dz", dz, size(h));
  expect("dw", dw, size(w));
  expect("dskip", dskip, size(w));
  nb::gil_scoped_release release;
  head_norm_skip_gate_backward(s, in, d_out.data(), {dh.data(), dc.data(), dz.data(), dw.data(), dskip.data()},
                               threads);
}

void swiglu(const In& gate, const In& up, Out out, int threads) {
  expect("up", up, size(gate));
  expect("out", out, size(gate));
  nb::gil_scoped_release release;
  swiglu_forward(size(gate), gate.data(), up.data(), out.data(), threads);
}

void swiglu_grad(const In& gate, const In& up, const In& d_out, Out d_gate, Out d_up, int threads) {
  expect("up", up, size(gate));
  expect("d_out", d_out, size(gate));
  expect("d_gate", d_gate, size(gate));
  expect("d_up", d_up, size(gate));
  nb::gil_scoped_release release;
  swiglu_backward(size(gate), gate.data(), up.data(), d_out.data(), d_gate.data(), d_up.data(), threads);
}

void soft_cap(const In& x, Out out, float cap, int threads) {
  expect("out", out, size(x));
  nb::gil_scoped_release release;
  soft_cap_forward(size(x), cap, x.data(), out.data(), threads);
}

void soft_cap_grad(const In& out, const In& d_out, Out dx, float cap, int threads) {
  expect("d_out", d_out, size(out));
  expect("dx", dx, size(out));
  nb::gil_scoped_release release;
  soft_cap_backward(size(out), cap, out.data(), d_out.data(), dx.data(), threads);
}

void activate(const std::string& activation, const In& x, Out out, int threads) {
  const Activation which = activation_named(activation);
  expect("out", out, size(x));
  nb::gil_scoped_release release;
  activate_forward(which, size(x), x.data(), out.data(), threads);
}

void activate_grad(const std::string& activation, const In& x, const In& d_out, Out dx, int threads) {
  const Activation which = activation_named(activation);
  expect("d_out", d_out, size(x));
  expect("dx", dx, size(x));
  nb::gil_scoped_release release;
  activate_backward(which, size(x), x.data(), d_out.data(), dx.data(), threads);
}

void glu(const std::string& activation, const In& gate, const In& up, Out out, int threads) {
  const Activation which = activation_named(activation);
  expect("up", up, size(gate));
  expect("out", out, size(gate));
  nb::gil_scoped_release release;
  glu_forward(which, size(gate), gate.data(), up.data(), out.data(), threads);
}

void glu_grad(const std::string& activation, const In& gate, const In& up, const In& d_out, Out d_gate, Out d_up,
              int threads) {
  const Activation which = activation_named(activation);
  expect("up", up, size(gate));
  expect("d_out", d_out, size(gate));
  expect("d_gate", d_gate, size(gate));
  expect("d_up", d_up, size(gate));
  nb::gil_scoped_release release;
  glu_backward(which, size(gate), gate.data(), up.data(), d_out.data(), d_gate.data(), d_up.data(), threads);
}

using Starts = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Conv conv_arguments(const In& x, const In& w, const In& b, const std::optional<In>& state,
                    const std::optional<Starts>& starts, bool silu) {
  if (x.ndim() != 3 || w.ndim() != 3) throw nb::value_error("x must be (B, S, C) and w (C, 1, K)");
  const Index B = axis(x, 0), S = axis(x, 1), C = axis(x, 2), K = axis(w, 2);
  if (S == 0 || K == 0) throw nb::value_error("x must have positions and w taps, at least one of each");
  expect("w", w, {C, K});
  expect("b", b, C);
  if (state) expect("state", *state, {B, (K - 1), C});
  if (starts) expect("starts", *starts, {B, S});
  return {B, S, C, K, silu, x.data(), w.data(), b.data(), data_or_null(state), data_or_null(starts)};
}

void causal_conv(const In& x, const In& w, const In& b, const std::optional<In>& state,
                 const std::optional<Starts>& starts, Out y, Out last, bool silu, int threads) {
  const Conv conv = conv_arguments(x, w, b, state, starts, silu);
  expect("y", y, size(x));
  expect("last", last, {conv.B, (conv.K - 1), conv.C});
  nb::gil_scoped_release release;
  causal_conv_forward(conv, y.data(), last.data(), threads);
}

void causal_conv_grad(const In& x, const In& w, const In& b, const std::optional<In>& state,
                      const std::optional<Starts>& starts, const In& dy, const std::optional<In>& d_last, Out dx,
                      Out dw, Out db, std::optional<Out> d_state, bool silu, int threads) {
  const Conv conv = conv_arguments(x, w, b, state, starts, silu);
  const Index states = product({conv.B, (conv.K - 1), conv.C});
  expect("dy", dy, size(x));
  if (d_last) expect("d_last", *d_last, states);
  expect("dx", dx, size(x));
  expect("dw", dw, size(w));
  expect("db", db, size(b));
  if (d_state) expect("d_state", *d_state, states);
  nb::gil_scoped_release release;
  causal_conv_backward(conv, dy.data(), data_or_null(d_last), {dx.data(), dw.data(), db.data(), data_or_null(d_state)},
                       threads);
}

LongConv long_conv_shape(const In& x, const In& f) {
  if (x.ndim() != 3 || f.ndim() != 2) throw nb::value_error("x must be (B, S, C) and f (C, J)");
  const LongConv s{axis(x, 0), axis(x, 1), axis(x, 2), axis(f, 1)};
  expect("f", f, {s.C, s.J});
  if (s.J < s.S)
    throw nb::value_error(("f has " + std::to_string(s.J) + " taps, expected one for each of x's " +
                           std::to_string(s.S) + " positions or more")
                              .c_str());
  return s;
}

void long_conv(const In& x, const In& f, Out y, int threads) {
  const LongConv s = long_conv_shape(x, f);
  expect("y", y, size(x));
  nb::gil_scoped_release release;
  long_conv_forward(s, x.data(), f.data(), y.data(), threads);
}

void long_conv_grad(const In& x, const In& f, const In& dy, Out dx, Out df, int threads) {
  const LongConv s = long_conv_shape(x, f);
  expect("dy", dy, size(x));
  expect("dx", dx, size(x));
  expect("df", df, size(f));
  nb::gil_scoped_release release;
  long_conv_backward(s, x.data(), f.data(), dy.data(), dx.data(), df.data(), threads);
}

// One map without its output: sizes of the blocks that split rows of `width`.
template <class Map>
Map blocks(const In& weight, Index width) {
  if (weight.ndim() != 3) throw nb::value_error("weight must be (G, out / G, in / G)");
  if (axis(weight, 0) * axis(weight, 2) != width)
    throw nb::value_error(("weight has " + std::to_string(axis(weight, 0)) + " blocks of " + std::to_string(axis(weight, 2)) +
                           " inputs, x has " + std::to_string(width))
                              .c_str());
  Map map{};
  map.groups = axis(weight, 0), map.out = axis(weight, 1), map.in = axis(weight, 2), map.weight = weight.data();
  return map;
}

void block_diagonal(const In& x, const std::vector<In>& weights, const std::vector<std::optional<In>>& biases,
                    std::vector<Out> outs, int threads) {
  const Index width = last("x", x), n = rows("x", x);
  if (biases.size() != weights.size() || outs.size() != weights.size())
    throw nb::value_error("weights, biases and outs must have one entry per map");
  std::vector<DiagonalForward> maps;
  for (std::size_t j = 0; j < weights.size(); ++j) {
    auto map = blocks<DiagonalForward>(weights[j], width);
    if (biases[j]) expect("bias", *biases[j], {map.groups, map.out});
    expect("out", outs[j], {n, map.groups, map.out});
    map.bias = data_or_null(biases[j]);
    map.y = outs[j].data();
    maps.push_back(map);
  }
  nb::gil_scoped_release release;
  block_diagonal_forward(n, width, x.data(), maps, threads);
}

void block_diagonal_grad(const In& x, const std::vector<In>& weights, const std::vector<In>& d_outs,
                         std::optional<Out> dx, std::vector<Out> d_weights,
                         std::vector<std::optional<Out>> d_biases, int threads) {
  const Index width = last("x", x), n = rows("x", x);
  if (d_outs.size() != weights.size() || d_weights.size() != weights.size() || d_biases.size() != weights.size())
    throw nb::value_error("weights, d_outs, d_weights and d_biases must have one entry per map");
  if (dx) expect("dx", *dx, {n, width});
  std::vector<DiagonalBackward> maps;
  for (std::size_t j = 0; j < weights.size(); ++j) {
    auto map = blocks<DiagonalBackward>(weights[j], width);
    expect("d_out", d_outs[j], {n, map.groups, map.out});
    expect("d_weight", d_weights[j], size(weights[j]));
    if (d_biases[j]) expect("d_bias", *d_biases[j], {map.groups, map.out});
    map.dy = d_outs[j].data();
    map.d_weight = d_weights[j].data();
    map.d_bias = data_or_null(d_biases[j]);
    maps.push_back(map);
  }
  nb::gil_scoped_release release;
  block_diagonal_backward(n, width, x.data(), maps, data_or_null(dx), threads);
}

}  // namespace
}  // namespace mlxhog

void bind_layers(nb::module_& m) {
  using namespace nb::literals;
  using namespace mlxhog;
  m.def("rms_norm", &rms_norm, A("x"), A("w"), A("out"), nb::kw_only(), "eps"_a, "threads"_a,
        "out = w * x / sqrt(mean(x^2) + eps) over the last axis.");
  m.def("rms_norm_grad", &rms_norm_grad, A("x"), A("w"), A("d_out"), A("dx"), A("dw"), nb::kw_only(), "eps"_a,
        "threads"_a);
  m.def("layer_norm", &layer_norm, A("x"), A("w"), A("out"), nb::kw_only(), "eps"_a, "threads"_a,
        "out = w * LayerNorm(x) over x's last axis; w holds one or more heads of that width.");
  m.def("layer_norm_grad", &layer_norm_grad, A("x"), A("w"), A("d_out"), A("dx"), A("dw"), nb::kw_only(), "eps"_a,
        "threads"_a);
  m.def("head_norm_gate", &head_norm_gate, A("h"), A("o"), A("w"), A("out"), nb::kw_only(), "eps"_a, "threads"_a,
        "out = sigmoid(o) * w * LayerNorm(h) within each head (h's last axis).");
  m.def("head_norm_gate_grad", &head_norm_gate_grad, A("h"), A("o"), A("w"), A("d_out"), A("dh"), A("do"), A("dw"),
        nb::kw_only(), "eps"_a, "threads"_a);
  m.def("head_norm_skip_gate", &head_norm_skip_gate, A("h"), A("c"), A("z"), A("w"), A("skip"), A("out"),
        nb::kw_only(), "eps"_a, "threads"_a,
        "out = (w * LayerNorm(h) + skip * c) * silu(z), normalised within each head (h's last axis).");
  m.def("head_norm_skip_gate_grad", &head_norm_skip_gate_grad, A("h"), A("c"), A("z"), A("w"), A("skip"), A("d_out"),
        A("dh"), A("dc"), A("dz"), A("dw"), A("dskip"), nb::kw_only(), "eps"_a, "threads"_a);
  m.def("activate", &activate, "activation"_a, A("x"), A("out"), nb::kw_only(), "threads"_a,
        "out = activation(x); gelu, gelu_tanh, silu, relu, relu^2, sigmoid, selu or softplus.");
  m.def("activate_grad", &activate_grad, "activation"_a, A("x"), A("d_out"), A("dx"), nb::kw_only(), "threads"_a);
  m.def("glu", &glu, "activation"_a, A("gate"), A("up"), A("out"), nb::kw_only(), "threads"_a,
        "out = activation(gate) * up; the activations of `activate`.");
  m.def("glu_grad", &glu_grad, "activation"_a, A("gate"), A("up"), A("d_out"), A("d_gate"), A("d_up"), nb::kw_only(),
        "threads"_a);
  m.def("swiglu", &swiglu, A("gate"), A("up"), A("out"), nb::kw_only(), "threads"_a, "out = silu(gate) * up.");
  m.def("swiglu_grad", &swiglu_grad, A("gate"), A("up"), A("d_out"), A("d_gate"), A("d_up"), nb::kw_only(), "threads"_a);
  m.def("soft_cap", &soft_cap, A("x"), A("out"), nb::kw_only(), "cap"_a, "threads"_a, "out = cap * tanh(x / cap).");
  m.def("soft_cap_grad", &soft_cap_grad, A("out"), A("d_out"), A("dx"), nb::kw_only(), "cap"_a, "threads"_a,
        "dx of soft_cap from its result.");
  m.def("causal_conv", &causal_conv, A("x"), A("w"), A("b"), A("state").none(), A("starts").none(), A("y"), A("last"),
        nb::kw_only(), "silu"_a, "threads"_a,
        "y[t] = b + sum_j w[j] x[t - (K - 1) + j], then SiLU if wanted. x, y (B,S,C); w (C,1,K); b (C,); state and "
        "last (B,K-1,C), the inputs before the first and up to the last position; starts (B,S) uint8, the first token "
        "of each document.");
  m.def("causal_conv_grad", &causal_conv_grad, A("x"), A("w"), A("b"), A("state").none(), A("starts").none(), A("dy"),
        A("d_last").none(), A("dx"), A("dw"), A("db"), A("d_state").none(), nb::kw_only(), "silu"_a, "threads"_a);
  m.attr("LONG_CONV_DIRECT") = kLongConvDirect;
  m.def("long_conv", &long_conv, A("x"), A("f"), A("y"), nb::kw_only(), "threads"_a,
        "y[t] = sum over j <= t of f[j] x[t - j]. x, y (B,S,C); f (C,J), J >= S; S^2 operations, so for S up to "
        "LONG_CONV_DIRECT.");
  m.def("long_conv_grad", &long_conv_grad, A("x"), A("f"), A("dy"), A("dx"), A("df"), nb::kw_only(), "threads"_a);
  m.def("is_small_block", &is_small_block, "out"_a, "inner"_a,
        "Whether block_diagonal has a kernel for blocks (out, inner); the others are matrix products.");
  m.def("block_diagonal", &block_diagonal, A("x"), A("weights"), A("biases"), A("outs"), nb::kw_only(), "threads"_a,
        "Slice g of out_j is slice g of x times W_j[g]^T, plus b_j; weights (G, out / G, in / G).");
  m.def("block_diagonal_grad", &block_diagonal_grad, A("x"), A("weights"), A("d_outs"), A("dx").none(),
        A("d_weights"), A("d_biases"), nb::kw_only(), "threads"_a);
}
