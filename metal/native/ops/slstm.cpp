#include "slstm.h"

#include <algorithm>
#include <string>
#include <vector>

#include "skinny_gemm.h"
#include "gemm.h"
#include "rows.h"
#include "shapes.h"

namespace mlxhog {
namespace {

// How both passes split the work: a task is a head of `rows` sequences, of which each head has `blocks`.
struct SlstmRows {
  Index rows, blocks;

  SlstmRows(const SlstmShape& s, int threads) {
    constexpr Index kMaxRows = 14;  // sequences that share one pass over R
    const Index idle = std::min(s.B, (threads + s.NH - 1) / s.NH);  // tasks that each head should give
    blocks = std::max((s.B + kMaxRows - 1) / kMaxRows, idle);
    rows = (s.B + blocks - 1) / blocks;
    blocks = (s.B + rows - 1) / rows;
  }

  // Calls work(head, first sequence, sequences) for every task.
  template <class Work>
  void for_each_task(const SlstmShape& s, int threads, const Work& work) const {
    parallel_for(s.NH * blocks, threads, [&](Index task) {
      const Index first = task % blocks * rows;
      work(task / blocks, first, std::min(rows, s.B - first));
    });
  }
};

// -- forward

constexpr Index kPanel = 32;       // columns that one pass of the matrix product covers
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
    if (panels_.empty()) skinny_linears(rows, DH_, h, {{4 * DH_, R_, nullptr, pre, true}}, 1);
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
MLXHOG_CLONES void step(Index DH, const float* pre, float* h, float* c, float* n, float* m, float* out, float* values) {
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
    values[kWrite * DH + e] = write;
    values[kKeep * DH + e] = keep;
    values[kForget * DH + e] = forget;
    values[kTanhZ * DH + e] = z;
    values[kSigmoidO * DH + e] = o;
    values[kC * DH + e] = c[e];
    values[kN * DH + e] = n[e];
  }
}

// All steps of some sequences of one head, side by side.
void forward_rows(const SlstmShape& s, const SlstmInputs& in, const SlstmState& state, float* h, float* values,
                  Index head, Index first, Index rows) {
  const Index DH = s.DH;
  const Recurrent recurrent(in.R + head * 4 * DH * DH, DH, s.S);
  const float* gates[] = {in.i, in.f, in.z, in.o};
  std::vector<float> pre(rows * 4 * DH), h_now(rows * DH), unsaved(kSlstmSaved * DH);
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
           values ? values + at * kSlstmSaved : unsaved.data());
    }
  }
}

// -- backward

struct SlstmSaved {
  const float *R, *h0, *c0, *n0, *h, *values;
  const std::uint8_t* starts;
};

// Gradients of the inputs and, in `state`, of the state: the final one's on entry, the initial one's on return.
struct SlstmGradients {
  float *i, *f, *z, *o, *R, *b;
  SlstmState state;
};

// h depends on c and n only through their ratio, so m counts as constant; the gradient of m from the last state itself
// is `free`, which follows max(i~, lf) back to a gate: that of m less that of the scale of c and n, which it gets back
// before the first step.
MLXHOG_CLONES void move_free(Index DH, float sign, const float* c, const float* n, const float* dc, const float* dn,
                             float* dm) {
#pragma omp simd
  for (Index e = 0; e < DH; ++e) dm[e] += sign * (dc[e] * c[e] + dn[e] * n[e]);
}

// One step of one head of one sequence; d_pre has four rows of DH.
MLXHOG_CLONES void step_gradient(Index DH, const float* values, const float* c_old, const float* n_old, const float* dh,
                                 const float* dh_next, float* dc, float* dn, float* free, float* d_pre) {
#pragma omp simd
  for (Index e = 0; e < DH; ++e) {
    const float write = values[kWrite * DH + e], keep = values[kKeep * DH + e];
    const float z = values[kTanhZ * DH + e], o = values[kSigmoidO * DH + e];
    const float inverse = 1.0f / values[kN * DH + e], ratio = values[kC * DH + e] * inverse;
    const float total = dh[e] + dh_next[e], d_ratio = total * o * inverse;
    const float dc_now = dc[e] + d_ratio, dn_now = dn[e] - d_ratio * ratio;
    const bool by_input = write == 1.0f;  // m' = i~
    d_pre[e] = (dc_now * z + dn_now) * write + (by_input ? free[e] : 0.0f);
    d_pre[DH + e] =
        ((dc_now * c_old[e] + dn_now * n_old[e]) * keep + (by_input ? 0.0f : free[e])) * values[kForget * DH + e];
    d_pre[2 * DH + e] = dc_now * write * (1.0f - z * z);
    d_pre[3 * DH + e] = total * ratio * o * (1.0f - o);
    dc[e] = dc_now * keep;
    dn[e] = dn_now * keep;
    free[e] = by_input ? 0.0f : free[e];
  }
}

// All steps of some sequences of one head, side by side, last step first.
void backward_rows(const SlstmShape& s, const SlstmSaved& saved, const float* dh, const SlstmGradients& out,
                   Index head, Index first, Index rows) {
  const Index DH = s.DH;
  const SlstmState& d = out.state;
  float* const gates[] = {out.i, out.f, out.z, out.o};
  const float* R = saved.R + head * 4 * DH * DH;
  std::vector<float> d_pre(rows * 4 * DH);
  const std::vector<float> nothing(DH);
  const auto unit = [&](Index r) { return ((first + r) * s.NH + head) * DH; };
  for (Index r = 0; r < rows; ++r) {
    const float* values = saved.values + s.at(first + r, s.S - 1, head) * kSlstmSaved;
    move_free(DH, -1.0f, values + kC * DH, values + kN * DH, d.c + unit(r), d.n + unit(r), d.m + unit(r));
  }
  for (Index t = s.S - 1; t >= 0; --t) {
    const auto starts = [&](Index r) { return saved.starts && saved.starts[(first + r) * s.S + t]; };
    for (Index r = 0; r < rows; ++r) {
      const Index at = s.at(first + r, t, head);
      const float* values = saved.values + at * kSlstmSaved;
      const float *c_old = nothing.data(), *n_old = nothing.data();
      if (!starts(r)) {
        const float* before = values - (t > 0 ? s.width() * kSlstmSaved : 0);
        c_old = t > 0 ? before + kC * DH : saved.c0 + unit(r);
        n_old = t > 0 ? before + kN * DH : saved.n0 + unit(r);
      }
      float* row = d_pre.data() + r * 4 * DH;
      step_gradient(DH, values, c_old, n_old, dh + at, d.h + unit(r), d.c + unit(r), d.n + unit(r), d.m + unit(r), row);
      for (Index g = 0; g < 4; ++g) std::copy_n(row + g * DH, DH, gates[g] + at);
    }
    gemm(rows, DH, 4 * DH, d_pre.data(), 4 * DH, 1, R, DH, d.h + unit(0), s.width(), false);
    for (Index r = 0; r < rows; ++r)
      if (starts(r))
        for (float* x : {d.h, d.c, d.n, d.m}) std::fill_n(x + unit(r), DH, 0.0f);
  }
  for (Index r = 0; r < rows; ++r)
    move_free(DH, 1.0f, saved.c0 + unit(r), saved.n0 + unit(r), d.c + unit(r), d.n + unit(r), d.m + unit(r));
}

// Rows of dR and db of one gate of one head: dR = sum_t d_t h_{t-1}^T, db = sum_t d_t, sequence by sequence.
void sum_gate(const SlstmShape& s, const SlstmSaved& saved, const float* d, Index head, float* dR, float* db) {
  const Index DH = s.DH, ld = s.width();
  std::vector<float> of_sequence(DH);
  std::fill_n(dR, DH * DH, 0.0f);
  std::fill_n(db, DH, 0.0f);
  for (Index b = 0; b < s.B; ++b) {
    const auto starts = [&](Index t) { return saved.starts && saved.starts[b * s.S + t]; };
    if (!starts(0))
      gemm(DH, DH, 1, d + s.at(b, 0, head), 1, ld, saved.h0 + (b * s.NH + head) * DH, ld, dR, DH, true);
    for (Index from = 1, to; from < s.S; from = to + 1) {  // positions whose past is one stretch of h
      for (to = from; to < s.S && !starts(to);) ++to;
      if (to > from)
        gemm(DH, DH, to - from, d + s.at(b, from, head), 1, ld, saved.h + s.at(b, from - 1, head), ld, dR, DH, true);
    }
    std::fill(of_sequence.begin(), of_sequence.end(), 0.0f);
    add_rows(s.S, DH, d + s.at(b, 0, head), ld, of_sequence.data());
    add_rows(1, DH, of_sequence.data(), DH, db);
  }
}

void slstm_backward(const SlstmShape& s, const SlstmSaved& saved, const float* dh, const SlstmGradients& out,
                    int threads) {
  SlstmRows(s, threads).for_each_task(s, threads, [&](Index head, Index first, Index rows) {
    backward_rows(s, saved, dh, out, head, first, rows);
  });
  const float* const gates[] = {out.i, out.f, out.z, out.o};
  parallel_for(s.NH * 4, threads, [&](Index task) {
    const Index head = task / 4, g = task % 4;
    sum_gate(s, saved, gates[g], head, out.R + task * s.DH * s.DH, out.b + g * s.width() + head * s.DH);
  });
}

SlstmShape cell_shape(const Sizes& sizes) {
  sizes.expect_positive({"B", "S", "NH", "DH"});
  return sizes.as<SlstmShape>("B", "S", "NH", "DH");
}

}  // namespace

void slstm_forward(const SlstmShape& s, const SlstmInputs& in, const SlstmState& state, float* h, float* values,
                   int threads) {
  SlstmRows(s, threads).for_each_task(s, threads, [&](Index head, Index first, Index rows) {
    forward_rows(s, in, state, h, values, head, first, rows);
  });
}

void bind_slstm(nb::module_& m) {
  m.attr("SLSTM_SAVED") = static_cast<Index>(kSlstmSaved);
  const std::string values = "saved: B S NH " + std::to_string(kSlstmSaved) + " DH, ";
  def(m, "slstm",
      "i f z o: B S NH DH, R: NH 4*DH DH, b: 4*NH*DH, starts: B S, h: B S NH DH, " + values +
      "h_state c n m: B NH DH",
      "sLSTM cell. starts uint8 or None; saved for slstm_grad, or None. h_state, c, n, m hold "
      "the initial state on entry and the final one on return.",
      [](Sizes& sizes, Floats i, Floats f, Floats z, Floats o, Floats R, Floats b, Maybe<const std::uint8_t> starts,
         Result h, MaybeResult values, Result h_state, Result c, Result n, Result m, int threads) {
        slstm_forward(cell_shape(sizes), {i, f, z, o, R, b, starts}, {h_state, c, n, m}, h, values, threads);
      });
  def(m, "slstm_grad",
      "R: NH 4*DH DH, starts: B S, h0 c0 n0: B NH DH, h: B S NH DH, " + values +
      "dh di df dz do: B S NH DH, dR: NH 4*DH DH, db: 4*NH*DH, dh_state dc dn dm: B NH DH",
      "Exact gradients of slstm; dh_state, dc, dn, dm hold the final state's gradient on entry and the initial "
      "state's on return.",
      [](Sizes& sizes, Floats R, Maybe<const std::uint8_t> starts, Floats h0, Floats c0, Floats n0, Floats h,
         Floats values, Floats dh, Result di, Result df, Result dz, Result d_o, Result dR, Result db, Result dh_state,
         Result dc, Result dn, Result dm, int threads) {
        slstm_backward(cell_shape(sizes), {R, h0, c0, n0, h, values, starts}, dh,
                       {di, df, dz, d_o, dR, db, {dh_state, dc, dn, dm}}, threads);
      });
}

}  // namespace mlxhog
