#include "decode.h"

#include <algorithm>
#include <cmath>

#include "conv.h"
#include "few_rows.h"
#include "norm.h"
#include "pool.h"
#include "slstm.h"

namespace mlxhog {
namespace {

using Row = std::vector<float>;

constexpr float kClosedGate = -25.0f;  // of a forget gate where the memory begins anew; models/forward_pass.py
constexpr Index kVector = 16;          // a block of fewer columns is no work for vectors
constexpr Index kWorthAThread = 1 << 18;  // numbers of a state that a thread has to have; see few_rows.cpp

const float* offset(const float* p, Index by) { return p ? p + by : nullptr; }

MLXHOG_CLONES void one_plus(Index count, const float* w, float* scale) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) scale[j] = 1.0f + w[j];
}

// x (rows, width) += y, or += a row of `width` for each
MLXHOG_CLONES void add(Index rows, Index width, const float* y, Index y_ld, float* x) {
  for (Index r = 0; r < rows; ++r, x += width, y += y_ld)
#pragma omp simd
    for (Index j = 0; j < width; ++j) x[j] += y[j];
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
    few_rows_maps(1, part, x + at, {{part, p.weight + at * part, offset(p.bias, at), y + at}}, 1);
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

 private:
  void large(const DecodeBlock& b, const float* before, float* after) {
    const Index QK = b.heads * b.DK, VV = b.heads * b.DV, U = b.U;
    const DecodeLayer* p = b.layers.data();
    Row q(rows_ * QK), k(q.size()), v(rows_ * VV), o(v.size()), i(rows_ * b.heads), f(i.size()), h(v.size());
    maps(model_.d, u_, {map(p[kQ], QK, q), map(p[kK], QK, k), map(p[kV], VV, v), map(p[kOgate], VV, o),
                        map(p[kIgate], b.heads, i), map(p[kFgate], b.heads, f)});
    for (Row* gate : {&i, &f}) soft_cap_forward(rows_ * b.heads, model_.gate_cap, gate->data(), gate->data(), 1);
    cells(b, q.data(), k.data(), QK, v.data(), VV, i, f, before, after, h);
    head_norm_gate_forward({rows_, b.heads, b.DV, model_.norm_eps}, h.data(), o.data(), p[kHeadNorm].weight, v.data(),
                           1);
    if (p[kHeadNorm].bias) add_gated_bias(rows_, VV, o.data(), p[kHeadNorm].bias, v.data());
    maps(VV, v, {map(p[kOutProj], model_.d, x_, true)});
    norm(p[kNormFfn]);
    Row gate(rows_ * U), up(gate.size());
    maps(model_.d, u_, {map(p[kGate], U, gate), map(p[kUp], U, up)});
    swiglu_forward(rows_ * U, gate.data(), up.data(), gate.data(), 1);
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
    Row scale(I);
    one_plus(I, p[kMOutNorm].weight, scale.data());
    head_norm_skip_gate_forward({rows_, heads, b.DV, model_.norm_eps},
                                {h.data(), c.data(), z.data(), scale.data(), p[kMSkip].weight}, a.data(), 1);
    maps(I, a, {map(p[kMDown], model_.d, x_, true)});
  }

  void slstm(const DecodeBlock& b, const float* before, float* after) {
    const Index d = model_.d, U = b.U;
    const DecodeLayer* p = b.layers.data();
    Row c(u_), i(rows_ * d), f(i.size()), z(i.size()), o(i.size()), h(i.size()), scale(d, 1.0f);
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
    if (p[kSGroupNorm].weight) one_plus(d, p[kSGroupNorm].weight, scale.data());
    layer_norm_forward(rows_, b.heads, b.DK, model_.norm_eps, h.data(), scale.data(), h.data(), 1);
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
             const Row& i, Row& f, const float* before, float* after, Row& h) {
    const Index heads = b.heads, DK = b.DK, DV = b.DV, count = rows_ * heads, taps = b.convolved();
    for (Index r = 0; r < rows_; ++r)
      if (starts_[r]) std::fill_n(&f[r * heads], heads, kClosedGate);
    const Index worth = std::max<Index>(1, count * DK * DV / kWorthAThread);
    parallel_for(count, static_cast<int>(std::min<Index>(threads_, worth)), [&](Index cell) {
      const Index row = cell / heads, head = cell % heads, state = row * stride_ + taps;
      const Index C = state + head * DK * DV, n = state + heads * DK * DV + head * DK;
      const Index m = state + heads * (DK * DV + DK) + head, at = row * qk_ld + head * DK;
      cell_step(DK, DV, model_.cell_eps, q + at, k + at, v + row * v_ld + head * DV, i[cell], f[cell], before + C,
                before + n, before + m, after + C, after + n, after + m, &h[cell * DV]);
    });
  }

  void convolve(const DecodeBlock& b, const DecodeLayer& p, const Row& x, const float* before, float* after, Row& y) {
    for (Index r = 0; r < rows_; ++r)
      causal_conv_forward({1, 1, b.width, b.taps, true, &x[r * b.width], p.weight, p.bias, before + r * stride_,
                           &starts_[r]},
                          &y[r * b.width], after + r * stride_, 1);
  }

  static FewRowsMap map(const DecodeLayer& p, Index out, Row& y, bool add = false) {
    return {out, p.weight, p.bias, y.data(), add};
  }

  // A map to 2 * out numbers as one to each half.
  std::vector<FewRowsMap> halves(const DecodeLayer& p, Index out, Row& first, Row& second) const {
    return {map(p, out, first), {out, p.weight + out * model_.d, offset(p.bias, out), second.data()}};
  }

  void maps(Index in, const Row& x, const std::vector<FewRowsMap>& maps) {
    few_rows_maps(rows_, in, x.data(), maps, threads_);
  }

  // u = the normalised x
  void norm(const DecodeLayer& p) {
    const Index d = model_.d;
    if (model_.rms) {
      rms_norm_forward(rows_, d, model_.norm_eps, x_.data(), p.weight, u_.data(), 1);
    } else {
      Row scale(d);
      one_plus(d, p.weight, scale.data());
      layer_norm_forward(rows_, 1, d, model_.norm_eps, x_.data(), scale.data(), u_.data(), 1);
    }
    if (p.bias) add(rows_, d, p.bias, 0, u_.data());
  }

  const DecodeModel& model_;
  const Index rows_, stride_;  // floats from the state of a sequence to that of the next
  const int threads_;
  std::vector<std::uint8_t> starts_;
  Row x_, u_;
};

}  // namespace

Index DecodeModel::state() const {
  Index floats = 0;
  for (const DecodeBlock& block : blocks) floats += block.state();
  return floats;
}

void decode_step(const DecodeModel& model, Index rows, const std::int32_t* tokens, const float* added,
                 const float* before, float* after, float* logits, int threads) {
  Step step(model, rows, tokens, added, threads);
  for (const DecodeBlock& block : model.blocks) {
    step.block(block, before, after);
    before += block.state(), after += block.state();
  }
  step.logits(logits);
}

}  // namespace mlxhog
