#include "activation.h"

#include <algorithm>

#include "pool.h"

namespace mlxhog {
namespace {

constexpr Index kCount = 16384;  // floats per task: 64 KiB

MLXHOG_CLONES void swiglu(Index count, const float* gate, const float* up, float* out) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) out[j] = gate[j] * sigmoid_f32(gate[j]) * up[j];
}

MLXHOG_CLONES void swiglu_gradient(Index count, const float* gate, const float* up, const float* d_out,
                                   float* d_gate, float* d_up) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) {
    const float s = sigmoid_f32(gate[j]);
    d_gate[j] = d_out[j] * up[j] * s * (1.0f + gate[j] * (1.0f - s));
    d_up[j] = d_out[j] * gate[j] * s;
  }
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

template <class Work>
void in_pieces(Index count, int threads, const Work& work) {
  parallel_for((count + kCount - 1) / kCount, threads,
               [&](Index task) { work(task * kCount, std::min(kCount, count - task * kCount)); });
}

}  // namespace

void swiglu_forward(Index count, const float* gate, const float* up, float* out, int threads) {
  in_pieces(count, threads, [=](Index at, Index n) { swiglu(n, gate + at, up + at, out + at); });
}

void swiglu_backward(Index count, const float* gate, const float* up, const float* d_out, float* d_gate,
                     float* d_up, int threads) {
  in_pieces(count, threads, [=](Index at, Index n) {
    swiglu_gradient(n, gate + at, up + at, d_out + at, d_gate + at, d_up + at);
  });
}

void soft_cap_forward(Index count, float cap, const float* x, float* out, int threads) {
  in_pieces(count, threads, [=](Index at, Index n) { soft_cap(n, cap, x + at, out + at); });
}

void soft_cap_backward(Index count, float cap, const float* out, const float* d_out, float* dx, int threads) {
  in_pieces(count, threads, [=](Index at, Index n) { soft_cap_gradient(n, cap, out + at, d_out + at, dx + at); });
}

}  // namespace mlxhog
