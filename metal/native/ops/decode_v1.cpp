#include "decode_v1.h"

#include <algorithm>

#include "conv.h"
#include "decode_cells.h"
#include "few_rows.h"
#include "gated_norm.h"
#include "norm.h"
#include "slstm.h"

namespace mlxhog {
namespace {

constexpr float kClosedGate = -25.0f;  // of a forget gate where the memory begins anew; models/forward_pass.py

using Row = std::vector<float>;

MLXHOG_CLONES void one_plus(Index count, const float* w, float* scale) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) scale[j] = 1.0f + w[j];
}

MLXHOG_CLONES void add(Index count, const float* y, float* x) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) x[j] += y[j];
}

const float* offset(const float* p, Index by) { return p ? p + by : nullptr; }

constexpr Index kVector = 16;  // a block of fewer columns is no work for vectors

MLXHOG_CLONES void small_blocks(Index groups, Index block, const DecodeLayer& p, const float* x, float* y) {
  for (Index row = 0; row < groups * block; ++row) {
    const float *w = p.weight + row * block, *slice = x + row / block * block;
    float sum = p.bias ? p.bias[row] : 0.0f;
    for (Index j = 0; j < block; ++j) sum += w[j] * slice[j];
    y[row] = sum;
  }
}

// y = W x + b of one row, W block-diagonal (groups, block, block)
void diagonal(Index groups, Index block, const DecodeLayer& p, const float* x, float* y) {
  if (block < kVector) return small_blocks(groups, block, p, x, y);
  for (Index at = 0; at < groups * block; at += block)
    few_rows_maps(1, block, x + at, {{block, p.weight + at * block, offset(p.bias, at), y + at}}, 1);
}

class V1Step {
 public:
  V1Step(const V1Model& model, Index rows, const std::int32_t* tokens, const float* added, int threads)
      : model_(model), rows_(rows), threads_(threads), starts_(rows), x_(rows * model.d), u_(x_.size()) {
    for (Index r = 0; r < rows; ++r) {
      std::copy_n(model.embedding + tokens[r] * model.d, model.d, &x_[r * model.d]);
      for (Index j = 0; added && j < model.d; ++j) x_[r * model.d + j] += added[r * model.d + j];
      starts_[r] = tokens[r] == model.reset_token;
    }
  }

  // before and after: this block's state of the first sequence; those of the others lie `stride` floats apart.
  void block(const V1Block& b, const float* before, float* after, Index stride) {
    norm(b.layers[b.slstm ? std::size_t{kSNorm} : std::size_t{kMNorm}].weight);
    if (b.slstm) slstm(b.layers, before, after, stride);
    else mlstm(b.layers, before, after, stride);
  }

  void logits(float* out) {
    if (model_.out_norm) norm(model_.out_norm);
    maps(model_.d, model_.out_norm ? u_ : x_, {{model_.V, model_.head, nullptr, out}});
  }

 private:
  using Layers = std::array<DecodeLayer, kMLayers>;

  void mlstm(const Layers& p, const float* before, float* after, Index stride) {
    const Index I = model_.I, heads = model_.m_heads, DK = I / heads, block = I / model_.groups;
    const Index taps = (model_.m_K - 1) * I;
    Row a(rows_ * I), z(rows_ * I), c(rows_ * I), qkv(3 * rows_ * I), i(rows_ * heads), f(i.size()), h(a.size());
    maps(model_.d, u_, {{I, p[kMUp].weight, p[kMUp].bias, a.data()},
                        {I, p[kMUp].weight + I * model_.d, offset(p[kMUp].bias, I), z.data()}});
    convolve(p[kMConv], I, model_.m_K, a, before, after, stride, c);
    for (Index r = 0; r < rows_; ++r) {
      float* q = &qkv[3 * r * I];
      diagonal(model_.groups, block, p[kMQ], &c[r * I], q);
      diagonal(model_.groups, block, p[kMK], &c[r * I], q + I);
      diagonal(model_.groups, block, p[kMV], &a[r * I], q + 2 * I);
    }
    maps(3 * I, qkv, {{heads, p[kMIgate].weight, p[kMIgate].bias, i.data()},
                      {heads, p[kMFgate].weight, p[kMFgate].bias, f.data()}});
    for (Index r = 0; r < rows_; ++r)
      if (starts_[r]) std::fill_n(&f[r * heads], heads, kClosedGate);
    mlstm_step(rows_, heads, DK, DK, model_.cell_eps,
               {qkv.data(), qkv.data() + I, qkv.data() + 2 * I, 3 * I, 3 * I, i.data(), f.data()}, before + taps,
               after + taps, stride, h.data(), threads_);
    Row scale(I);
    one_plus(I, p[kMOutNorm].weight, scale.data());
    head_norm_skip_gate_forward({rows_, heads, DK, model_.norm_eps},
                                {h.data(), c.data(), z.data(), scale.data(), p[kMSkip].weight}, a.data(), 1);
    maps(I, a, {{model_.d, p[kMDown].weight, p[kMDown].bias, x_.data(), true}});
  }

  void slstm(const Layers& p, const float* before, float* after, Index stride) {
    const Index d = model_.d, heads = model_.s_heads, DH = d / heads, taps = model_.s_K ? (model_.s_K - 1) * d : 0;
    Row c(u_), i(rows_ * d), f(i.size()), z(i.size()), o(i.size()), h(i.size()), scale(d, 1.0f);
    if (p[kSConv].weight) convolve(p[kSConv], d, model_.s_K, u_, before, after, stride, c);
    for (Index r = 0; r < rows_; ++r) {
      const Index at = r * d;
      diagonal(heads, DH, p[kSIgate], &c[at], &i[at]);
      diagonal(heads, DH, p[kSFgate], &c[at], &f[at]);
      diagonal(heads, DH, p[kSZgate], &u_[at], &z[at]);
      diagonal(heads, DH, p[kSOgate], &u_[at], &o[at]);
      float* state = after + r * stride + taps;
      std::copy_n(before + r * stride + taps, 4 * d, state);
      slstm_forward({1, 1, heads, DH},
                    {&i[at], &f[at], &z[at], &o[at], p[kSRecurrent].weight, p[kSRecurrent].bias, &starts_[r]},
                    {state, state + d, state + 2 * d, state + 3 * d}, &h[at], nullptr, 1);
    }
    if (p[kSGroupNorm].weight) one_plus(d, p[kSGroupNorm].weight, scale.data());
    layer_norm_forward(rows_, heads, DH, model_.norm_eps, h.data(), scale.data(), h.data(), 1);
    add(rows_ * d, h.data(), x_.data());
    if (p[kSFfnUp].weight) ffn(p);
  }

  void ffn(const Layers& p) {
    const Index U = model_.U;
    Row gate(rows_ * U), up(gate.size());
    norm(p[kSFfnNorm].weight);
    maps(model_.d, u_, {{U, p[kSFfnUp].weight, p[kSFfnUp].bias, gate.data()},
                        {U, p[kSFfnUp].weight + U * model_.d, offset(p[kSFfnUp].bias, U), up.data()}});
    glu_forward(model_.activation, rows_ * U, gate.data(), up.data(), gate.data(), 1);
    maps(U, gate, {{model_.d, p[kSFfnDown].weight, p[kSFfnDown].bias, x_.data(), true}});
  }

  void convolve(const DecodeLayer& p, Index width, Index K, const Row& x, const float* before, float* after,
                Index stride, Row& y) {
    for (Index r = 0; r < rows_; ++r)
      causal_conv_forward({1, 1, width, K, true, &x[r * width], p.weight, p.bias, before + r * stride, &starts_[r]},
                          &y[r * width], after + r * stride, 1);
  }

  void maps(Index in, const Row& x, const std::vector<FewRowsMap>& maps) {
    few_rows_maps(rows_, in, x.data(), maps, threads_);
  }

  // u = LayerNorm(x) * (1 + w)
  void norm(const float* w) {
    Row scale(model_.d);
    one_plus(model_.d, w, scale.data());
    layer_norm_forward(rows_, 1, model_.d, model_.norm_eps, x_.data(), scale.data(), u_.data(), 1);
  }

  const V1Model& model_;
  const Index rows_;
  const int threads_;
  std::vector<std::uint8_t> starts_;
  Row x_, u_;
};

}  // namespace

void decode_v1_step(const V1Model& model, Index rows, const std::int32_t* tokens, const float* added,
                    const float* before, float* after, float* logits, int threads) {
  V1Step step(model, rows, tokens, added, threads);
  Index stride = 0, at = 0;
  for (const V1Block& block : model.blocks) stride += model.block_state(block);
  for (const V1Block& block : model.blocks) {
    step.block(block, before + at, after + at, stride);
    at += model.block_state(block);
  }
  step.logits(logits);
}

}  // namespace mlxhog
