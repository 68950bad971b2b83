#include "decode_large.h"

#include <algorithm>

#include "activation.h"
#include "decode_cells.h"
#include "few_rows.h"
#include "gated_norm.h"
#include "norm.h"

namespace mlxhog {
namespace {

constexpr float kClosedGate = -25.0f;  // of a forget gate where the memory begins anew; models/forward_pass.py

MLXHOG_CLONES void add_bias(Index rows, Index d, const float* bias, float* x) {
  for (Index r = 0; r < rows; ++r, x += d)
#pragma omp simd
    for (Index j = 0; j < d; ++j) x[j] += bias[j];
}

// y += sigmoid(o) * bias, the part of a head norm's bias that reaches the output projection
MLXHOG_CLONES void add_gated_bias(Index rows, Index d, const float* o, const float* bias, float* y) {
  for (Index r = 0; r < rows; ++r, o += d, y += d)
#pragma omp simd
    for (Index j = 0; j < d; ++j) y[j] += sigmoid_f32(o[j]) * bias[j];
}

// Intermediate results of a step; one row per sequence.
struct Scratch {
  std::vector<float> x, u, q, k, v, o, i, f, h, y, gate, up;

  Scratch(const DecodeModel& m, Index rows)
      : x(rows * m.d), u(rows * m.d), q(rows * m.heads * m.DK), k(q.size()), v(rows * m.heads * m.DV), o(v.size()),
        i(rows * m.heads), f(i.size()), h(v.size()), y(v.size()), gate(rows * m.U), up(gate.size()) {}
};

class Step {
 public:
  Step(const DecodeModel& model, Index rows, const std::int32_t* tokens, const float* added, int threads)
      : model_(model), rows_(rows), tokens_(tokens), threads_(threads), s_(model, rows) {
    for (Index r = 0; r < rows; ++r) {
      std::copy_n(model.embedding + tokens[r] * model.d, model.d, &s_.x[r * model.d]);
      for (Index j = 0; added && j < model.d; ++j) s_.x[r * model.d + j] += added[r * model.d + j];
    }
  }

  // before and after: this block's state of the first sequence; those of the others lie `stride` floats apart.
  void block(const std::array<DecodeLayer, kBlockLayers>& p, const float* before, float* after, Index stride) {
    const Index dqk = model_.heads * model_.DK, dv = model_.heads * model_.DV;
    norm(p[kNormMlstm], s_.u);
    maps(model_.d, s_.u,
         {map(p[kQ], dqk, s_.q), map(p[kK], dqk, s_.k), map(p[kV], dv, s_.v), map(p[kOgate], dv, s_.o),
          map(p[kIgate], model_.heads, s_.i), map(p[kFgate], model_.heads, s_.f)});
    cap(s_.i, model_.gate_cap);
    cap(s_.f, model_.gate_cap);
    for (Index r = 0; r < rows_; ++r)
      if (tokens_[r] == model_.reset_token) std::fill_n(&s_.f[r * model_.heads], model_.heads, kClosedGate);
    mlstm_step(rows_, model_.heads, model_.DK, model_.DV, model_.eps,
               {s_.q.data(), s_.k.data(), s_.v.data(), dqk, dv, s_.i.data(), s_.f.data()}, before, after, stride,
               s_.h.data(), threads_);
    head_norm_gate_forward({rows_, model_.heads, model_.DV, model_.norm_eps}, s_.h.data(), s_.o.data(),
                           p[kHeadNorm].weight, s_.y.data(), 1);
    if (p[kHeadNorm].bias) add_gated_bias(rows_, dv, s_.o.data(), p[kHeadNorm].bias, s_.y.data());
    maps(dv, s_.y, {map(p[kOutProj], model_.d, s_.x, true)});
    norm(p[kNormFfn], s_.u);
    maps(model_.d, s_.u, {map(p[kGate], model_.U, s_.gate), map(p[kUp], model_.U, s_.up)});
    swiglu_forward(rows_ * model_.U, s_.gate.data(), s_.up.data(), s_.gate.data(), 1);
    maps(model_.U, s_.gate, {map(p[kDown], model_.d, s_.x, true)});
  }

  void logits(float* out) {
    const bool normed = model_.out_norm.weight != nullptr;
    if (normed) norm(model_.out_norm, s_.u);
    few_rows_maps(rows_, model_.d, normed ? s_.u.data() : s_.x.data(), {{model_.V, model_.head, nullptr, out}}, threads_);
    if (model_.logit_cap > 0) soft_cap_forward(rows_ * model_.V, model_.logit_cap, out, out, 1);
  }

 private:
  static FewRowsMap map(const DecodeLayer& p, Index out, std::vector<float>& y, bool add = false) {
    return {out, p.weight, p.bias, y.data(), add};
  }

  void maps(Index in, const std::vector<float>& x, const std::vector<FewRowsMap>& maps) {
    few_rows_maps(rows_, in, x.data(), maps, threads_);
  }

  void norm(const DecodeLayer& p, std::vector<float>& out) {
    rms_norm_forward(rows_, model_.d, model_.norm_eps, s_.x.data(), p.weight, out.data(), 1);
    if (p.bias) add_bias(rows_, model_.d, p.bias, out.data());
  }

  void cap(std::vector<float>& x, float cap) {
    soft_cap_forward(static_cast<Index>(x.size()), cap, x.data(), x.data(), 1);
  }

  const DecodeModel& model_;
  const Index rows_;
  const std::int32_t* tokens_;
  const int threads_;
  Scratch s_;
};

}  // namespace

void decode_step(const DecodeModel& model, Index rows, const std::int32_t* tokens, const float* added,
                 const float* before, float* after, float* logits, int threads) {
  Step step(model, rows, tokens, added, threads);
  const Index of_block = model.block_state(), stride = of_block * static_cast<Index>(model.blocks.size());
  for (std::size_t l = 0; l < model.blocks.size(); ++l) {
    const Index at = static_cast<Index>(l) * of_block;
    step.block(model.blocks[l], before + at, after + at, stride);
  }
  step.logits(logits);
}

}  // namespace mlxhog
