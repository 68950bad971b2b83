// One token of a model for a few sequences: embedding, every block in its recurrent form, logits.
//
// The equations are those of models/layers/xlstm.py; this computes them without a framework, whose overhead per
// operation would be most of the time of a small model. Parameters are read where they lie.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "activation.h"
#include "conv.h"
#include "norm.h"
#include "pool.h"
#include "shapes.h"
#include "skinny_gemm.h"
#include "slstm.h"

namespace mlxhog {
namespace {

// The bias is null where the model has none, the weight where it has no such layer.
struct DecodeLayer {
  const float *weight = nullptr, *bias = nullptr;
};

enum class BlockKind { large, mlstm, slstm };  // of xLSTM Large; of the original stack

// The layers of each kind, in this order. In kRecurrent R is the weight and b the bias; gates stand by what they drive,
// whatever their names.
enum LargeLayer { kNormMlstm, kQ, kK, kV, kOgate, kIgate, kFgate, kHeadNorm, kOutProj, kNormFfn, kGate, kUp, kDown };
enum MlstmLayer { kMNorm, kMUp, kMConv, kMQ, kMK, kMV, kMIgate, kMFgate, kMOutNorm, kMSkip, kMDown };
enum SlstmLayer {
  kSNorm, kSConv, kSIgate, kSFgate, kSZgate, kSOgate, kSRecurrent, kSGroupNorm, kSFfnNorm, kSFfnUp, kSFfnDown
};

struct DecodeBlock {
  BlockKind kind;
  Index heads, DK, DV;  // of an sLSTM cell DK is the width of a head
  Index width, taps;    // of the convolution; 0 taps are none
  Index part, U;        // rows of a block of the mLSTM's block-diagonal maps; width of the feed-forward part
  std::vector<DecodeLayer> layers;

  // Floats of a sequence's state: the last inputs of the convolution (taps - 1, width), then C (heads, DK, DV),
  // n (heads, DK) and m (heads), or h, c, n and m (width) of an sLSTM cell.
  Index convolved() const { return taps ? (taps - 1) * width : 0; }
  Index state() const { return convolved() + (kind == BlockKind::slstm ? 4 * width : heads * (DK * DV + DK + 1)); }
};

struct DecodeModel {
  Index d, V;
  bool rms;  // RMSNorm with weights w as they are, in place of LayerNorm with 1 + w
  float norm_eps, cell_eps, gate_cap, logit_cap;  // logit_cap 0 is no cap
  Activation activation;                          // of the sLSTM's feed-forward part
  std::int32_t reset_token;                       // where the memory begins anew; -1 is nowhere
  const float *embedding, *head;                  // (V, d)
  DecodeLayer out_norm;
  std::vector<DecodeBlock> blocks;

  Index state() const {
    Index floats = 0;
    for (const DecodeBlock& block : blocks) floats += block.state();
    return floats;
  }
};

using Row = std::vector<float>;

constexpr Index kVector = 16;             // a block of fewer columns is no work for vectors
constexpr Index kWorthAThread = 1 << 18;  // numbers of a state that a thread has to have; see skinny_gemm.cpp

const float* offset(const float* p, Index by) { return p ? p + by : nullptr; }

// 1 + w; ones where w is null
Row one_plus(Index count, const float* w) {
  Row scale(count, 1.0f);
  if (w) add_to(count, w, scale.data());
  return scale;
}

// x (rows, width) += y, or += a row of `width` for each
void add(Index rows, Index width, const float* y, Index y_ld, float* x) {
  for (Index r = 0; r < rows; ++r) add_to(width, y + r * y_ld, x + r * width);
}

// y += sigmoid(o) * bias, the part of a head norm's bias that reaches the output projection
MLXHOG_CLONES void add_gated_bias(Index rows, Index d, const float* o, const float* bias, float* y) {
  for (Index r = 0; r < rows; ++r, o += d, y += d)
#pragma omp simd
    for (Index j = 0; j < d; ++j) y[j] += sigmoid_f32(o[j]) * bias[j];
}

MLXHOG_CLONES void small_blocks(Index width, Index part, const DecodeLayer& p, const float* x, float* y) {
  for (Index row = 0; row < width; ++row) {
    const float *w = p.weight + row * part, *slice = x + row / part * part;
    float sum = p.bias ? p.bias[row] : 0.0f;
    for (Index j = 0; j < part; ++j) sum += w[j] * slice[j];
    y[row] = sum;
  }
}

// y = W x + b of one row, W block-diagonal (width / part, part, part)
void diagonal(Index width, Index part, const DecodeLayer& p, const float* x, float* y) {
  if (part < kVector) return small_blocks(width, part, p, x, y);
  for (Index at = 0; at < width; at += part)
    skinny_linears(1, part, x + at, {{part, p.weight + at * part, offset(p.bias, at), y + at}}, 1);
}

// One step of the mLSTM cell of one head: state C (DK, DV), n (DK), m, and h (DV).
MLXHOG_CLONES void cell_step(Index DK, Index DV, float eps, const float* q, const float* k, const float* v, float i,
                             float f, const float* C, const float* n, const float* m, float* new_C, float* new_n,
                             float* new_m, float* h) {
  const float decayed = log_sigmoid_f32(f) + *m;
  const float top = i > decayed || i != i ? i : decayed;  // NaN stays NaN
  const float F = exp_f32(decayed - top), I = exp_f32(i - top), scale = 1.0f / std::sqrt(static_cast<float>(DK));
  float den = 0;
#pragma omp simd reduction(+ : den)
  for (Index a = 0; a < DK; ++a) {
    new_n[a] = F * n[a] + I * k[a];
    den += q[a] * new_n[a];
  }
  std::fill(h, h + DV, 0.0f);
  for (Index a = 0; a < DK; ++a, C += DV, new_C += DV) {
    const float key = I * k[a], query = q[a];
#pragma omp simd
    for (Index b = 0; b < DV; ++b) {
      const float value = F * C[b] + key * v[b];
      new_C[b] = value;
      h[b] += query * value;
    }
  }
  const float floor = exp_f32(-top), size = std::fabs(scale * den);
  const float factor = scale / ((size < floor ? floor : size) + eps);
#pragma omp simd
  for (Index b = 0; b < DV; ++b) h[b] *= factor;
  *new_m = top;
}

class Step {
 public:
  Step(const DecodeModel& model, Index rows, const std::int32_t* tokens, const float* added, int threads)
      : model_(model), rows_(rows), stride_(model.state()), threads_(threads), starts_(rows), x_(rows * model.d),
        u_(x_.size()) {
    for (Index r = 0; r < rows; ++r) {
      std::copy_n(model.embedding + tokens[r] * model.d, model.d, &x_[r * model.d]);
      starts_[r] = tokens[r] == model.reset_token;
    }
    if (added) add(rows, model.d, added, model.d, x_.data());
  }

  // The states `before` and `after` of the first sequence lie block by block; no row depends on another, to the bit.
  void run(const float* before, float* after, float* out) {
    for (const DecodeBlock& b : model_.blocks) {
      block(b, before, after);
      before += b.state(), after += b.state();
    }
    logits(out);
  }

 private:
  // before and after: this block's state of the first sequence.
  void block(const DecodeBlock& b, const float* before, float* after) {
    norm(b.layers[0]);
    if (b.kind == BlockKind::large) large(b, before, after);
    else if (b.kind == BlockKind::mlstm) mlstm(b, before, after);
    else slstm(b, before, after);
  }

  void logits(float* out) {
    const bool normed = model_.out_norm.weight;
    if (normed) norm(model_.out_norm);
    maps(model_.d, normed ? u_ : x_, {{model_.V, model_.head, nullptr, out}});
    if (model_.logit_cap > 0) soft_cap_forward(rows_ * model_.V, model_.logit_cap, out, out, 1);
  }

  void large(const DecodeBlock& b, const float* before, float* after) {
    const Index QK = b.heads * b.DK, VV = b.heads * b.DV, U = b.U;
    const DecodeLayer* p = b.layers.data();
    Row q(rows_ * QK), k(q.size()), v(rows_ * VV), o(v.size()), i(rows_ * b.heads), f(i.size()), h(v.size());
    maps(model_.d, u_, {map(p[kQ], QK, q), map(p[kK], QK, k), map(p[kV], VV, v), map(p[kOgate], VV, o),
                        map(p[kIgate], b.heads, i), map(p[kFgate], b.heads, f)});
    for (Row* gate : {&i, &f}) soft_cap_forward(rows_ * b.heads, model_.gate_cap, gate->data(), gate->data(), 1);
    cells(b, q.data(), k.data(), QK, v.data(), VV, i, f, before, after, h);
    head_norm_forward({rows_, b.heads, b.DV, model_.norm_eps}, {h.data(), p[kHeadNorm].weight, o.data()}, v.data(), 1);
    if (p[kHeadNorm].bias) add_gated_bias(rows_, VV, o.data(), p[kHeadNorm].bias, v.data());
    maps(VV, v, {map(p[kOutProj], model_.d, x_, true)});
    norm(p[kNormFfn]);
    Row gate(rows_ * U), up(gate.size());
    maps(model_.d, u_, {map(p[kGate], U, gate), map(p[kUp], U, up)});
    glu_forward(Activation::silu, rows_ * U, gate.data(), up.data(), gate.data(), 1);
    maps(U, gate, {map(p[kDown], model_.d, x_, true)});
  }

  void mlstm(const DecodeBlock& b, const float* before, float* after) {
    const Index I = b.width, heads = b.heads;
    const DecodeLayer* p = b.layers.data();
    Row a(rows_ * I), z(rows_ * I), c(rows_ * I), qkv(3 * rows_ * I), i(rows_ * heads), f(i.size()), h(a.size());
    maps(model_.d, u_, halves(p[kMUp], I, a, z));
    convolve(b, p[kMConv], a, before, after, c);
    for (Index r = 0; r < rows_; ++r) {
      float* q = &qkv[3 * r * I];
      diagonal(I, b.part, p[kMQ], &c[r * I], q);
      diagonal(I, b.part, p[kMK], &c[r * I], q + I);
      diagonal(I, b.part, p[kMV], &a[r * I], q + 2 * I);
    }
    maps(3 * I, qkv, {map(p[kMIgate], heads, i), map(p[kMFgate], heads, f)});
    cells(b, qkv.data(), qkv.data() + I, 3 * I, qkv.data() + 2 * I, 3 * I, i, f, before, after, h);
    const Row scale = one_plus(I, p[kMOutNorm].weight);
    head_norm_forward({rows_, heads, b.DV, model_.norm_eps},
                      {h.data(), scale.data(), z.data(), c.data(), p[kMSkip].weight}, a.data(), 1);
    maps(I, a, {map(p[kMDown], model_.d, x_, true)});
  }

  void slstm(const DecodeBlock& b, const float* before, float* after) {
    const Index d = model_.d, U = b.U;
    const DecodeLayer* p = b.layers.data();
    Row c(u_), i(rows_ * d), f(i.size()), z(i.size()), o(i.size()), h(i.size());
    if (b.taps) convolve(b, p[kSConv], u_, before, after, c);
    for (Index r = 0; r < rows_; ++r) {
      const Index at = r * d;
      diagonal(d, b.DK, p[kSIgate], &c[at], &i[at]);
      diagonal(d, b.DK, p[kSFgate], &c[at], &f[at]);
      diagonal(d, b.DK, p[kSZgate], &u_[at], &z[at]);
      diagonal(d, b.DK, p[kSOgate], &u_[at], &o[at]);
      float* state = after + r * stride_ + b.convolved();
      std::copy_n(before + r * stride_ + b.convolved(), 4 * d, state);
      slstm_forward({1, 1, b.heads, b.DK},
                    {&i[at], &f[at], &z[at], &o[at], p[kSRecurrent].weight, p[kSRecurrent].bias, &starts_[r]},
                    {state, state + d, state + 2 * d, state + 3 * d}, &h[at], nullptr, 1);
    }
    const Row scale = one_plus(d, p[kSGroupNorm].weight);
    head_norm_forward({rows_, b.heads, b.DK, model_.norm_eps}, {h.data(), scale.data()}, h.data(), 1);
    add(rows_, d, h.data(), d, x_.data());
    if (!p[kSFfnUp].weight) return;
    norm(p[kSFfnNorm]);
    Row gate(rows_ * U), up(gate.size());
    maps(d, u_, halves(p[kSFfnUp], U, gate, up));
    glu_forward(model_.activation, rows_ * U, gate.data(), up.data(), gate.data(), 1);
    maps(U, gate, {map(p[kSFfnDown], d, x_, true)});
  }

  // h (rows, heads, DV) of the mLSTM cells; head j of row r has q, k and v at r * ld + j * D of theirs.
  void cells(const DecodeBlock& b, const float* q, const float* k, Index qk_ld, const float* v, Index v_ld,
             const Row& i, const Row& f, const float* before, float* after, Row& h) {
    const Index heads = b.heads, DK = b.DK, DV = b.DV, count = rows_ * heads, taps = b.convolved();
    const bool starts = std::find(starts_.begin(), starts_.end(), 1) != starts_.end();
    const Row zeros(starts ? DK * DV + DK + 1 : 0);  // the state where a document starts
    const Index worth = std::max<Index>(1, count * DK * DV / kWorthAThread);
    parallel_for(count, static_cast<int>(std::min<Index>(threads_, worth)), [&](Index cell) {
      const Index row = cell / heads, head = cell % heads, state = row * stride_ + taps;
      const Index C = state + head * DK * DV, n = state + heads * DK * DV + head * DK;
      const Index m = state + heads * (DK * DV + DK) + head, at = row * qk_ld + head * DK;
      const float *old_C = before + C, *old_n = before + n, *old_m = before + m;
      if (starts_[row]) old_C = zeros.data(), old_n = old_C + DK * DV, old_m = old_n + DK;
      cell_step(DK, DV, model_.cell_eps, q + at, k + at, v + row * v_ld + head * DV, i[cell], f[cell], old_C, old_n,
                old_m, after + C, after + n, after + m, &h[cell * DV]);
    });
  }

  void convolve(const DecodeBlock& b, const DecodeLayer& p, const Row& x, const float* before, float* after, Row& y) {
    for (Index r = 0; r < rows_; ++r)
      causal_conv_forward({1, 1, b.width, b.taps, true, &x[r * b.width], p.weight, p.bias, before + r * stride_,
                           &starts_[r]},
                          &y[r * b.width], after + r * stride_, 1);
  }

  static SkinnyLinear map(const DecodeLayer& p, Index out, Row& y, bool add = false) {
    return {out, p.weight, p.bias, y.data(), add};
  }

  // A map to 2 * out numbers as one to each half.
  std::vector<SkinnyLinear> halves(const DecodeLayer& p, Index out, Row& first, Row& second) const {
    return {map(p, out, first), {out, p.weight + out * model_.d, offset(p.bias, out), second.data()}};
  }

  void maps(Index in, const Row& x, const std::vector<SkinnyLinear>& maps) {
    skinny_linears(rows_, in, x.data(), maps, threads_);
  }

  // u = the normalized x
  void norm(const DecodeLayer& p) {
    const Index d = model_.d;
    if (model_.rms) {
      rms_norm_forward(rows_, d, model_.norm_eps, x_.data(), p.weight, u_.data(), 1);
    } else {
      const Row scale = one_plus(d, p.weight);
      head_norm_forward({rows_, 1, d, model_.norm_eps}, {x_.data(), scale.data()}, u_.data(), 1);
    }
    if (p.bias) add(rows_, d, p.bias, 0, u_.data());
  }

  const DecodeModel& model_;
  const Index rows_, stride_;  // floats from the state of a sequence to that of the next
  const int threads_;
  std::vector<std::uint8_t> starts_;
  Row x_, u_;
};

// -- in Python

using In = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Layer = std::pair<std::optional<In>, std::optional<In>>;  // weight and bias
using Block = std::pair<std::string, std::vector<Layer>>;       // kind and layers

// Shapes of the weights of the layers of each kind. A bias has a number for each row of its weight, or of a vector.
constexpr struct {
  const char *name, *weights;
} kKinds[] = {
    {"large", "norm: D, q k: QK D, v o: VV D, i f: NH D, head_norm: VV, out: D VV, ffn_norm: D, gate up: U D, down: D U"},
    {"mlstm", "norm: D, up: 2*I D, conv: I 1 K, q k v: G J J, i f: NH 3*I, head_norm skip: I, down: D I"},
    {"slstm", "norm: D, conv: D 1 K, i f z o: NH DH DH, R: NH 4*DH DH, group_norm ffn_norm: D, up: 2*U D, down: D U"},
};

// Smallest number of rows that one thread takes through the whole model alone; see kManyRows in skinny_gemm.cpp.
constexpr Index kRowsWorthAThread = 16;

class Decoder {
 public:
  Decoder(const DecodeModel& model, const std::vector<Block>& blocks) : model_(model) {
    for (const auto& [name, layers] : blocks) hold_block(name, layers);
  }

  Index state_floats() const { return model_.state(); }

  void step(Sizes& sizes, const std::int32_t* tokens, const float* before, float* after, float* logits,
            const float* added, int threads) const {
    const Index rows = sizes["B"], d = model_.d, V = model_.V, width = model_.state();
    sizes.expect({{"N", width}, {"V", V}, {"D", d}});
    for (Index r = 0; r < rows; ++r)
      require(tokens[r] >= 0 && tokens[r] < V, "token ", tokens[r], " in row ", r, " is outside [0, ", V, ")");
    // Many rows are divided among the threads, which meet at the end of the step alone; a few share each product.
    const Index parts = std::clamp<Index>(rows / kRowsWorthAThread, 1, std::max(threads, 1));
    parallel_for(parts, static_cast<int>(parts), [&](Index part) {
      const Index first = rows * part / parts;
      Step step(model_, rows * (part + 1) / parts - first, tokens + first, offset(added, first * d),
                parts > 1 ? 1 : threads);
      step.run(before + first * width, after + first * width, logits + first * V);
    });
  }

 private:
  // The next array of the shapes, which the decoder reads as long as it lives; null if it is None.
  const float* hold(Sizes& sizes, const std::optional<In>& array) {
    if (array) held_.push_back(*array);
    if (array) sizes.add(*array, 0);
    sizes.next();
    return array ? array->data() : nullptr;
  }

  const float* hold_bias(const std::optional<In>& weight, const std::optional<In>& bias) {
    if (!bias) return nullptr;
    const std::size_t axes = weight ? weight->ndim() : 0, size = weight ? weight->size() : 0;
    require(bias->size() == (axes > 1 && size ? size / weight->shape(axes - 1) : size), "a bias has ", bias->size(),
            " numbers, expected one per row");
    return held_.emplace_back(*bias).data();
  }

  void hold_block(const std::string& kind, const std::vector<Layer>& layers) {
    const auto* of = std::find_if(std::begin(kKinds), std::end(kKinds), [&](const auto& k) { return kind == k.name; });
    require(of != std::end(kKinds), "no kind of block is called ", kind);
    const std::string name = "block " + std::to_string(model_.blocks.size());
    const Shapes shapes(name.c_str(), of->weights);
    require(layers.size() == shapes.arguments.size(), name, " must have one (weight, bias) pair per layer");
    DecodeBlock& b = model_.blocks.emplace_back(DecodeBlock{static_cast<BlockKind>(of - kKinds), 0, 0, 0, 0, 0, 0, 0, {}});
    Sizes sizes(shapes);
    for (const auto& [weight, bias] : layers) b.layers.push_back({hold(sizes, weight), hold_bias(weight, bias)});
    sizes.read();
    sizes.expect({{"D", model_.d}});
    sizes.expect_positive({"NH"});
    b.heads = sizes["NH"];
    if (b.kind == BlockKind::slstm) {
      b.DK = sizes["DH"], b.width = model_.d;
      sizes.expect({{"D", b.heads * b.DK}});
      b.taps = b.layers[kSConv].weight ? sizes["K"] : 0, b.U = b.layers[kSFfnUp].weight ? sizes["U"] : 0;
    } else if (b.kind == BlockKind::mlstm) {
      b.width = sizes["I"], b.taps = sizes["K"], b.part = sizes["J"];
      sizes.expect({{"I", sizes["G"] * b.part}});
      b.DK = b.DV = b.width / b.heads;
      sizes.expect({{"I", b.heads * b.DK}});
    } else {
      b.U = sizes["U"];
      b.DK = sizes["QK"] / b.heads, b.DV = sizes["VV"] / b.heads;
      sizes.expect({{"QK", b.heads * b.DK}, {"VV", b.heads * b.DV}});
    }
  }

  DecodeModel model_;
  std::vector<In> held_;
};

Decoder make_decoder(Sizes& sizes, Floats embedding, Floats head, MaybeFloats out_norm, MaybeFloats out_norm_bias,
                     std::vector<Block> blocks, bool rms, float norm_eps, float cell_eps, float gate_cap,
                     float logit_cap, std::string activation, std::int32_t reset_token) {
  sizes.expect_positive({"D", "V"});
  return {{sizes["D"], sizes["V"], rms, norm_eps, cell_eps, gate_cap, logit_cap, activation_named(activation),
           reset_token, embedding, head, {out_norm, out_norm_bias}, {}}, blocks};
}

}  // namespace
}  // namespace mlxhog

void bind_decode(nb::module_& parent) {
  using namespace mlxhog;
  nb::class_<Decoder> decoder(parent, "Decoder",
                              "One token of a model for a few sequences, from the memory of its parameters.\n\n"
                              "blocks: the kind of each, large, mlstm or slstm, and a (weight, bias) of each of its "
                              "layers.");
  def_init<4>(decoder, "Decoder", "embedding head: V D, out_norm out_norm_bias: D", &make_decoder, A("blocks"), "rms"_a,
              "norm_eps"_a, "cell_eps"_a, "gate_cap"_a = 0.0f, "logit_cap"_a = 0.0f, "activation"_a, "reset_token"_a);
  decoder.def_prop_ro("state_floats", &Decoder::state_floats, "Floats of one sequence's states.");
  const auto step = [](Sizes& sizes, const Decoder& self, const std::int32_t* tokens, Floats before, Result after,
                       Result logits, MaybeFloats added, int threads) {
    self.step(sizes, tokens, before, after, logits, added, threads);
  };
  const Shapes shapes("step", "self, tokens: B, before after: B N, logits: B V, added: B D");
  const auto define = [&](const auto& call, const auto& /* self */, const auto&... arguments) {
    decoder.def("step", call, arguments...,
                "Read tokens (B,) int32 after the states `before` (B, state_floats); write `after`, which shares no\n"
                "memory with `before`, and logits (B, V). `added` (B, d) is added to the embedded tokens.");
  };
  def_as(signature(&decltype(step)::operator()), shapes, step, define, "threads"_a);
}
