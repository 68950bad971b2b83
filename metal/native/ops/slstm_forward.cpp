#include <algorithm>
#include <vector>

#include "few_rows.h"
#include "gemm.h"
#include "pool.h"
#include "slstm.h"

namespace mlxhog {
namespace {

constexpr Index kPanel = 32;       // columns that one pass of the matrix product covers
constexpr Index kMostRows = 14;    // sequences that share one pass over R
constexpr Index kWorthPanels = 4;  // steps from which on cutting them costs less than it gains

// The products h R^T of a head. For many steps R^T is kept, (DH, 4 DH), cut into panels of columns so that a product
// reads it in order; a few steps take R as it is.
class Recurrent {
 public:
  Recurrent(const float* R, Index DH, Index steps) : R_(R), DH_(DH) {
    if (steps < kWorthPanels) return;
    panels_.resize(4 * DH * DH);
    for (Index at = 0; at < 4 * DH; at += kPanel)
      transpose(R + at * DH, DH, columns(at), DH, panels_.data() + at * DH);
  }

  // pre (rows, 4 DH) += h R^T, h (rows, DH).
  void add_product(Index rows, const float* h, float* pre) const {
    if (panels_.empty()) few_rows_maps(rows, DH_, h, {{4 * DH_, R_, nullptr, pre, true}}, 1);
    else
      for (Index at = 0; at < 4 * DH_; at += kPanel)
        gemm(rows, columns(at), DH_, h, DH_, 1, panels_.data() + at * DH_, columns(at), pre + at, 4 * DH_, true);
  }

 private:
  Index columns(Index at) const { return std::min(kPanel, 4 * DH_ - at); }

  const float* R_;
  Index DH_;
  std::vector<float> panels_;
};

// One step of one head of one sequence, from its four rows of pre-activations.
MLXHOG_CLONES void step(Index DH, const float* pre, float* h, float* c, float* n, float* m, float* out, float* tape) {
#pragma omp simd
  for (Index e = 0; e < DH; ++e) {
    const float i = pre[e], f = pre[DH + e];
    const float z = tanh_f32(pre[2 * DH + e]), o = sigmoid_f32(pre[3 * DH + e]);
    const float small = exp_f32(f < 0.0f ? f : -f);  // the sigmoid of -f without cancellation
    const float forget = (f < 0.0f ? 1.0f : small) / (1.0f + small);
    const float lf = m[e] + log_sigmoid_f32(f), lead = i - lf;
    // exp(i - m') and min(exp(lf - m'), 1): one of them is 1, and both may be at a first step.
    const bool first = n[e] == 0.0f;
    const float lesser = exp_f32(lead < 0.0f ? lead : -lead);
    const float write = lead >= 0.0f || first ? 1.0f : lesser, keep = lead < 0.0f ? 1.0f : lesser;
    m[e] = lead >= 0.0f || first ? i : lf;
    c[e] = keep * c[e] + write * z;
    n[e] = keep * n[e] + write;
    h[e] = o * (c[e] / n[e]);
    out[e] = h[e];
    tape[kWrite * DH + e] = write;
    tape[kKeep * DH + e] = keep;
    tape[kForget * DH + e] = forget;
    tape[kTanhZ * DH + e] = z;
    tape[kSigmoidO * DH + e] = o;
    tape[kC * DH + e] = c[e];
    tape[kN * DH + e] = n[e];
  }
}

// All steps of some sequences of one head, side by side.
void forward_rows(const SlstmShape& s, const SlstmInputs& in, const SlstmState& state, float* h, float* tape,
                  Index head, Index first, Index rows) {
  const Index DH = s.DH;
  const Recurrent recurrent(in.R + head * 4 * DH * DH, DH, s.S);
  const float* gates[] = {in.i, in.f, in.z, in.o};
  std::vector<float> pre(rows * 4 * DH), h_now(rows * DH), no_tape(kSlstmTape * DH);
  for (Index t = 0; t < s.S; ++t) {
    for (Index r = 0; r < rows; ++r) {
      const Index b = first + r, unit = (b * s.NH + head) * DH;
      if (in.starts && in.starts[b * s.S + t])
        for (float* x : {state.h, state.c, state.n, state.m}) std::fill_n(x + unit, DH, 0.0f);
      for (Index g = 0; g < 4; ++g) {
        const float *given = gates[g] + s.at(b, t, head), *bias = in.b + g * s.width() + head * DH;
        for (Index e = 0; e < DH; ++e) pre[(r * 4 + g) * DH + e] = given[e] + bias[e];
      }
      std::copy_n(state.h + unit, DH, h_now.data() + r * DH);
    }
    recurrent.add_product(rows, h_now.data(), pre.data());
    for (Index r = 0; r < rows; ++r) {
      const Index b = first + r, unit = (b * s.NH + head) * DH, at = s.at(b, t, head);
      step(DH, pre.data() + r * 4 * DH, state.h + unit, state.c + unit, state.n + unit, state.m + unit, h + at,
           tape ? tape + at * kSlstmTape : no_tape.data());
    }
  }
}

}  // namespace

SlstmRows::SlstmRows(const SlstmShape& s, int threads) {
  const Index idle = std::min(s.B, (threads + s.NH - 1) / s.NH);  // tasks that each head should give
  blocks = std::max((s.B + kMostRows - 1) / kMostRows, idle);
  rows = (s.B + blocks - 1) / blocks;
  blocks = (s.B + rows - 1) / rows;
}

void slstm_forward(const SlstmShape& s, const SlstmInputs& in, const SlstmState& state, float* h, float* tape,
                   int threads) {
  const SlstmRows split(s, threads);
  parallel_for(s.NH * split.blocks, threads, [&](Index task) {
    const Index first = task % split.blocks * split.rows;
    forward_rows(s, in, state, h, tape, task / split.blocks, first, std::min(split.rows, s.B - first));
  });
}

}  // namespace mlxhog
