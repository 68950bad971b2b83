#include "activation.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <iterator>

#include "pool.h"
#include "shapes.h"

namespace mlxhog {
namespace {

constexpr Index kCount = 16384;  // floats per task: 64 KiB

MLXHOG_CLONES void swiglu_gradient(Index count, const float* gate, const float* up, const float* d_out,
                                   float* d_gate, float* d_up) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) {
    const float s = sigmoid_f32(gate[j]);
    d_gate[j] = d_out[j] * up[j] * s * (1.0f + gate[j] * (1.0f - s));
    d_up[j] = d_out[j] * gate[j] * s;
  }
}

struct Curve {
  float value, slope;
};

// x Phi(x), and Phi(x) + x phi(x), for the normal distribution. Phi(-|x|) is exp(-x^2 / 2) t p(t) with
// t = 1 / (1 + 0.35 |x|), p fitted to 3e-8 of it; so far negative values keep their digits too.
MLXHOG_INLINE Curve gelu(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float t = 1.0f / (1.0f + 0.35f * magnitude), bell = exp_f32(-0.5f * x * x);
  float p = -2.916392242e-2f;
  p = p * t + 1.440608352e-1f;
  p = p * t - 2.559019327e-1f;
  p = p * t + 1.593929827e-1f;
  p = p * t - 2.326388657e-2f;
  p = p * t + 1.055748239e-1f;
  p = p * t + 1.198154911e-1f;
  p = p * t + 1.398643404e-1f;
  p = p * t + 1.396212578e-1f;
  const float tail = bell * t * p, below = x < 0.0f ? tail : 1.0f - tail;
  return {x * below, below + 0.3989422804f * x * bell};
}

// x / 2 (1 + tanh u) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x sigmoid(2 u): so far negative values keep
// their digits too. Hendrycks and Gimpel 2016, arXiv:1606.08415.
MLXHOG_INLINE Curve gelu_tanh(float x) {
  constexpr float kTwice = 1.5957691216f, kCubic = 0.044715f;
  const float square = x * x, s = sigmoid_f32(kTwice * x * (1.0f + kCubic * square));
  const float slope = kTwice * (1.0f + 3.0f * kCubic * square);
  // Where s is 0 or 1 exactly, the cubic may be infinite.
  const float rise = s * (1.0f - s);
  return {x * s, s + (rise > 0.0f ? x * slope * rise : rise)};
}

MLXHOG_INLINE Curve silu(float x) {
  const float s = sigmoid_f32(x);
  return {x * s, s * (1.0f + x * (1.0f - s))};
}

// Maxima by `<`, so that NaN stays NaN.
MLXHOG_INLINE Curve relu(float x) { return {x < 0.0f ? 0.0f : x, x > 0.0f ? 1.0f : 0.0f}; }

MLXHOG_INLINE Curve relu_squared(float x) {
  const float positive = x < 0.0f ? 0.0f : x;
  return {positive * positive, 2.0f * positive};
}

MLXHOG_INLINE Curve sigmoid(float x) {
  const float s = sigmoid_f32(x);
  return {s, s * (1.0f - s)};
}

// Klambauer et al. 2017, arXiv:1706.02515.
MLXHOG_INLINE Curve selu(float x) {
  constexpr float kScale = 1.0507009874f, kBelow = kScale * 1.6732632423f;
  const float half = tanh_f32(0.5f * (x < 0.0f ? x : 0.0f));
  const float expm1 = 2.0f * half / (1.0f - half);
  return {x > 0.0f ? kScale * x : kBelow * expm1 + (x - x), x > 0.0f ? kScale : kBelow * (expm1 + 1.0f)};
}

MLXHOG_INLINE Curve softplus(float x) { return {-log_sigmoid_f32(-x), sigmoid_f32(x)}; }

// Calls use(the function that the name stands for).
template <class Use>
MLXHOG_INLINE void choose(Activation activation, const Use& use) {
  switch (activation) {
    case Activation::gelu: return use.template operator()<gelu>();
    case Activation::gelu_tanh: return use.template operator()<gelu_tanh>();
    case Activation::silu: return use.template operator()<silu>();
    case Activation::relu: return use.template operator()<relu>();
    case Activation::relu_squared: return use.template operator()<relu_squared>();
    case Activation::sigmoid: return use.template operator()<sigmoid>();
    case Activation::selu: return use.template operator()<selu>();
    case Activation::softplus: return use.template operator()<softplus>();
  }
}

MLXHOG_CLONES void activate(Activation activation, Index count, const float* x, float* out) {
  choose(activation, [=]<Curve (*kFunction)(float)>() MLXHOG_ALWAYS {
#pragma omp simd
    for (Index j = 0; j < count; ++j) out[j] = kFunction(x[j]).value;
  });
}

MLXHOG_CLONES void activate_gradient(Activation activation, Index count, const float* x, const float* d_out,
                                     float* dx) {
  choose(activation, [=]<Curve (*kFunction)(float)>() MLXHOG_ALWAYS {
#pragma omp simd
    for (Index j = 0; j < count; ++j) dx[j] = d_out[j] * kFunction(x[j]).slope;
  });
}

MLXHOG_CLONES void glu(Activation activation, Index count, const float* gate, const float* up, float* out) {
  choose(activation, [=]<Curve (*kFunction)(float)>() MLXHOG_ALWAYS {
#pragma omp simd
    for (Index j = 0; j < count; ++j) out[j] = kFunction(gate[j]).value * up[j];
  });
}

MLXHOG_CLONES void glu_gradient(Activation activation, Index count, const float* gate, const float* up,
                                const float* d_out, float* d_gate, float* d_up) {
  choose(activation, [=]<Curve (*kFunction)(float)>() MLXHOG_ALWAYS {
#pragma omp simd
    for (Index j = 0; j < count; ++j) {
      const Curve curve = kFunction(gate[j]);
      d_gate[j] = d_out[j] * up[j] * curve.slope;
      d_up[j] = d_out[j] * curve.value;
    }
  });
}

MLXHOG_CLONES void soft_cap(Index count, float cap, const float* x, float* out) {
  const float inverse = 1.0f / cap;
#pragma omp simd
  for (Index j = 0; j < count; ++j) out[j] = cap * tanh_f32(x[j] * inverse);
}

MLXHOG_CLONES void soft_cap_gradient(Index count, float cap, const float* out, const float* d_out, float* dx) {
  const float inverse = 1.0f / cap;
#pragma omp simd
  for (Index j = 0; j < count; ++j) {
    const float ratio = out[j] * inverse;
    dx[j] = d_out[j] * (1.0f - ratio * ratio);
  }
}

}  // namespace

void glu_forward(Activation activation, Index count, const float* gate, const float* up, float* out, int threads) {
  in_pieces(count, kCount, threads, [=](Index at, Index n) { glu(activation, n, gate + at, up + at, out + at); });
}

void soft_cap_forward(Index count, float cap, const float* x, float* out, int threads) {
  in_pieces(count, kCount, threads, [=](Index at, Index n) { soft_cap(n, cap, x + at, out + at); });
}

Activation activation_named(const std::string& name) {
  constexpr const char* kNames[] = {"gelu", "gelu_tanh", "silu", "relu", "relu^2", "sigmoid", "selu", "softplus"};
  const auto found = std::find(std::begin(kNames), std::end(kNames), name) - std::begin(kNames);
  require(found < std::ssize(kNames), "no activation is called ", name);
  return static_cast<Activation>(found);
}

namespace {

// Binds a loop over `count` numbers of some arrays.
template <class... Arrays>
void def_loop(nb::module_& m, const char* name, const char* arrays, const char* doc, void (*loop)(Index, Arrays...)) {
  def(m, name, arrays, doc, [=](Sizes& sizes, Arrays... x, int threads) {
    in_pieces(sizes["N"], kCount, threads, [=](Index at, Index n) { loop(n, (x + at)...); });
  });
}

// Likewise with the activation of a name.
template <class... Arrays>
void def_loop(nb::module_& m, const char* name, const char* arrays, const char* doc,
              void (*loop)(Activation, Index, Arrays...)) {
  def(m, name, std::string("activation, ") + arrays, doc,
      [=](Sizes& sizes, const std::string& activation, Arrays... x, int threads) {
        const Activation chosen = activation_named(activation);
        in_pieces(sizes["N"], kCount, threads, [=](Index at, Index n) { loop(chosen, n, (x + at)...); });
      });
}

}  // namespace

void bind_activation(nb::module_& m) {
  def_loop(m, "activate", "x out: N...",
           "out = activation(x); gelu, gelu_tanh, silu, relu, relu^2, sigmoid, selu or softplus.", activate);
  def_loop(m, "activate_grad", "x d_out dx: N...", "", activate_gradient);
  def_loop(m, "glu", "gate up out: N...", "out = activation(gate) * up; the activations of `activate`.", glu);
  def_loop(m, "glu_grad", "gate up d_out d_gate d_up: N...", "", glu_gradient);
  def_loop(m, "swiglu_grad", "gate up d_out d_gate d_up: N...", "", swiglu_gradient);
  def(m, "swiglu", "gate up out: N...", "out = silu(gate) * up.",
      [](Sizes& sizes, Floats gate, Floats up, Result out, int threads) {
        glu_forward(Activation::silu, sizes["N"], gate, up, out, threads);
      });
  def(m, "soft_cap", "x out: N...", "out = cap * tanh(x / cap).",
      [](Sizes& sizes, Floats x, Result out, float cap, int threads) {
        soft_cap_forward(sizes["N"], cap, x, out, threads);
      }, "cap"_a);
  def(m, "soft_cap_grad", "out d_out dx: N...", "dx of soft_cap from its result: d_out * (1 - (out / cap)^2).",
      [](Sizes& sizes, Floats out, Floats d_out, Result dx, float cap, int threads) {
        in_pieces(sizes["N"], kCount, threads,
                  [=](Index at, Index n) { soft_cap_gradient(n, cap, out + at, d_out + at, dx + at); });
      }, "cap"_a);
}

}  // namespace mlxhog
