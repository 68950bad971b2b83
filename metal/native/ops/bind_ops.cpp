// Python names of the model operators; the other bind_*.cpp add theirs. Arrays are C-contiguous float32
// on the CPU (labels int32) of any rank; sizes are checked here, outputs are written in place, and the GIL is
// released while kernels run.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "blas.h"
#include "gemm.h"
#include "linear.h"
#include "loss.h"
#include "memory.h"
#include "mlstm.h"
#include "shapes.h"

namespace mlxhog {
namespace {

void check_labels(Index n, Index V, const std::int32_t* labels) {
  for (Index r = 0; r < n; ++r)
    if (labels[r] != kIgnoredLabel && (labels[r] < 0 || labels[r] >= V))
      throw nb::value_error(("label " + std::to_string(labels[r]) + " at position " + std::to_string(r) +
                             " is neither -100 nor in [0, " + std::to_string(V) + ")")
                                .c_str());
}

MlstmShape cell_shape(Sizes& sizes, Index chunk, Index stride, float eps) {
  if (chunk < 1) throw nb::value_error("chunk must be at least 1");
  if (stride < 1) throw nb::value_error("stride must be at least 1");
  const Index S = sizes["S"], most = std::max<Index>(S, 1);  // larger ones are the same, and their sums overflow
  const MlstmShape s{sizes["B"],  S,  sizes["NH"], sizes["DK"], sizes["DV"], std::min(chunk, most),
                     std::min(stride, most), eps};
  sizes.expect({{"NC", s.chunks() + 1}, {"NM", s.matrices()}});
  return s;
}

Index mlstm_stride(Index DK, Index chunk) {
  if (DK < 1 || chunk < 1) throw nb::value_error("DK and chunk must be at least 1");
  return 1 + (DK - 1) / chunk;
}

// NumPy aligns to 16 bytes only, and vector stores that cross cache lines are slow.
nb::ndarray<nb::numpy, float> empty(const std::vector<std::size_t>& shape) {
  constexpr std::align_val_t kLine{64};
  std::size_t count = 1;
  for (const std::size_t axis : shape)
    if (__builtin_mul_overflow(count, axis, &count)) throw std::bad_alloc();
  auto* data = new (kLine) float[count];
  expect_writes(data, static_cast<Index>(count));
  const nb::capsule owner(data, [](void* p) noexcept { ::operator delete[](p, kLine); });
  return {data, shape.size(), shape.data(), owner};
}

}  // namespace
}  // namespace mlxhog

void bind_attention(nb::module_& m);
void bind_layers(nb::module_& m);
void bind_recurrences(nb::module_& m);

void bind_ops(nb::module_& parent) {
  using namespace nb::literals;
  using namespace mlxhog;
  nb::module_ m = parent.def_submodule(
      "ops", "Model operators on float32 arrays; every result is written into an array the caller gives.");
  m.def("gemm_kernel", &gemm_kernel, "Which matrix product runs here: 'avx512', 'neon' or 'portable'.");
  m.def("has_blas", &has_blas, "Whether the system's BLAS multiplies large matrices here, as Accelerate does on a Mac.");
  m.def("empty", &empty, "shape"_a, "An uninitialised float32 NumPy array that starts on a cache line.");
  m.def("keep_freed_memory", &keep_freed_memory,
        "Let malloc keep freed memory for the next step (glibc; process-wide); False where malloc has no such switch.");
  bind_layers(m);
  using Loss = std::pair<double, Index>;
  def(m, "cross_entropy", "logits: N... V, labels: N, gradient: N... V",
      "Sum of nats of the soft-capped logits (a cap of None leaves them as they are) and the count of labels other than "
      "-100; the sum's gradient with respect to the raw logits.",
      [](Sizes& sizes, Floats logits, const std::int32_t* labels, MaybeResult gradient, std::optional<float> cap,
         int threads) -> Loss {
        check_labels(sizes["N"], sizes["V"], labels);
        const LossSum total = capped_cross_entropy(sizes["N"], sizes["V"], cap, logits, labels, gradient, threads);
        return {total.nats, total.count};
      }, "cap"_a.none());
  def(m, "linear_cross_entropy", "x: N... IN, weight: V IN, labels: N, dx: N... IN, d_weight: V IN",
      "As cross_entropy of the logits x weight^T, without the logits as a whole: the sum's gradients with respect to x "
      "and weight.",
      [](Sizes& sizes, Floats x, Floats weight, const std::int32_t* labels, MaybeResult dx, MaybeResult d_weight,
         std::optional<float> cap, int threads) -> Loss {
        check_labels(sizes["N"], sizes["V"], labels);
        if (!dx != !d_weight) throw nb::value_error("dx and d_weight: give both or neither");
        const LossSum total = linear_cross_entropy(sizes["N"], sizes["IN"], sizes["V"], cap, x, weight, labels, dx,
                                                   d_weight, threads);
        return {total.nats, total.count};
      }, "cap"_a.none());
  def(m, "scale", "x: N...", "x *= factor.",
      [](Sizes& sizes, Result x, float factor, int threads) { scale(sizes["N"], factor, x, threads); }, "factor"_a);
  def(m, "linears", "x: N... IN, weights: OUT_j IN, biases: OUT_j, outs: N... OUT_j", "out_j = x W_j^T + b_j.",
      [](Sizes& sizes, Floats x, std::vector<Floats> weights, std::vector<MaybeFloats> biases,
         std::vector<Result> outs, int threads) {
        std::vector<LinearForward> maps;
        for (std::size_t j = 0; j < weights.size(); ++j)
          maps.push_back({sizes.at("OUT_j", j), weights[j], biases[j], outs[j]});
        linears_forward(sizes["N"], sizes["IN"], x, std::move(maps), threads);
      });
  def(m, "linears_grad",
      "x: N... IN, weights: OUT_j IN, d_outs: N... OUT_j, dx: N... IN, d_weights: OUT_j IN, d_biases: OUT_j", "",
      [](Sizes& sizes, Floats x, std::vector<Floats> weights, std::vector<Floats> d_outs, MaybeResult dx,
         std::vector<Result> d_weights, std::vector<MaybeResult> d_biases, int threads) {
        std::vector<LinearBackward> maps;
        for (std::size_t j = 0; j < weights.size(); ++j)
          maps.push_back({sizes.at("OUT_j", j), weights[j], d_outs[j], d_weights[j], d_biases[j]});
        linears_backward(sizes["N"], sizes["IN"], x, std::move(maps), dx, threads);
      });
  const std::string inputs = "q k: B S NH DK, v: B S NH DV, i f: B S NH";
  const std::string results = ", h: B S NH DV, den: B S NH, C: B NH NM DK DV, n: B NH NC DK, m: B NH NC";
  def(m, "mlstm", inputs + results,
      "mLSTM cell, chunkwise. n and m are the state before every chunk and after the last, NC in all, and C before "
      "every stride-th chunk alone and after the last, NM in all; entry 0 given.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats i, Floats f, Result h, Result den, Result C, Result n,
         Result m, Index chunk, Index stride, float eps, int threads) {
        const MlstmShape s = cell_shape(sizes, chunk, stride, eps);
        expect_writes(h, s.B * s.S * s.NH * s.DV);
        expect_writes(C, s.B * s.NH * s.matrices() * s.DK * s.DV);
        mlstm_forward(s, {q, k, v, i, f}, {h, den, C, n, m}, threads);
      }, "chunk"_a, "stride"_a, "eps"_a);
  m.def("mlstm_stride", &mlstm_stride, nb::kw_only(), "DK"_a, "chunk"_a,
        "The stride with which a training step keeps as many numbers in C as in v, and no more.");
  def(m, "mlstm_grad",
      inputs + results + ", dh: B S NH DV, dq dk: B S NH DK, dv: B S NH DV, di df: B S NH, dC: B NH DK DV, "
                         "dn: B NH DK, dm: B NH",
      "Gradients of mlstm; dC, dn, dm hold the final state's gradient on entry and the initial state's on return.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, Floats i, Floats f, Floats h, Floats den, Floats C, Floats n,
         Floats m, Floats dh, Result dq, Result dk, Result dv, Result di, Result df, Result dC, Result dn, Result dm,
         Index chunk, Index stride, float eps, int threads) {
        const MlstmShape s = cell_shape(sizes, chunk, stride, eps);
        const Index positions = s.B * s.S * s.NH;
        for (const Result gradient : {dq, dk}) expect_writes(gradient, positions * s.DK);
        expect_writes(dv, positions * s.DV);
        mlstm_backward(s, {q, k, v, i, f}, {h, den, C, n, m}, dh, {dq, dk, dv, di, df, dC, dn, dm}, threads);
      }, "chunk"_a, "stride"_a, "eps"_a);
  bind_attention(m);
  bind_recurrences(m);
}
