// Python names of the model operators; each file of an operator adds its own. Arrays are C-contiguous float32 on the
// CPU (labels int32) of any rank; sizes are checked here, outputs are written in place, and the GIL is released while
// kernels run.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <utility>
#include <vector>

#include "gemm.h"
#include "linear.h"
#include "memory.h"
#include "pool.h"
#include "shapes.h"

namespace mlxhog {
namespace {

// NumPy aligns to 16 bytes only, and vector stores that cross cache lines are slow.
nb::ndarray<nb::numpy, float> empty(const std::vector<std::size_t>& shape) {
  constexpr std::align_val_t kLine{64};
  std::size_t count = 1;
  for (const std::size_t axis : shape)
    if (__builtin_mul_overflow(count, axis, &count)) throw std::bad_alloc();
  auto* data = new (kLine) float[count];
  advise_huge_pages(data, static_cast<Index>(count));
  const nb::capsule owner(data, [](void* p) noexcept { ::operator delete[](p, kLine); });
  return {data, shape.size(), shape.data(), owner};
}

bool is_set(const std::vector<bool>& flags, std::size_t j) { return j < flags.size() && flags[j]; }

}  // namespace
}  // namespace mlxhog

void bind_ops(nb::module_& parent) {
  using namespace mlxhog;
  nb::module_ m = parent.def_submodule(
      "ops", "Model operators on float32 arrays; every result is written into an array the caller gives.");
  m.def("gemm_kernel", &gemm_kernel, "Which matrix product runs here: 'avx512', 'avx2', 'neon' or 'portable'.");
  m.def("bfloat16_kernel", &bfloat16_kernel,
        "Which product of bfloat16: 'amx' or 'avx512bf16', or one of these, which then takes longer than with floats.");
  m.def("empty", &empty, "shape"_a, "An uninitialized float32 NumPy array that starts on a cache line.");
  m.def("keep_freed_memory", &keep_freed_memory,
        "Let malloc keep freed memory for the next step (glibc; process-wide); False where malloc has no such switch.");
  def(m, "linears", "x: N... IN, weights: OUT_j IN, biases: OUT_j, outs: N... OUT_j", "out_j = x W_j^T + b_j.",
      [](Sizes& sizes, Floats x, std::vector<Floats> weights, std::vector<MaybeFloats> biases,
         std::vector<Result> outs, std::vector<bool> bfloat16, bool rounds, int threads) {
        std::vector<LinearMap> maps;
        for (std::size_t j = 0; j < weights.size(); ++j)
          maps.push_back({sizes.at("OUT_j", j), weights[j], biases[j], outs[j], nullptr, is_set(bfloat16, j), rounds && is_set(bfloat16, j)});
        linears_forward(sizes["N"], sizes["IN"], x, std::move(maps), threads);
      }, "bfloat16"_a = std::vector<bool>(), "rounds"_a = true);
  def(m, "linears_grad",
      "x: N... IN, weights: OUT_j IN, d_outs: N... OUT_j, dx: N... IN, d_weights: OUT_j IN, d_biases: OUT_j", "",
      [](Sizes& sizes, Floats x, std::vector<Floats> weights, std::vector<Floats> d_outs, MaybeResult dx,
         std::vector<MaybeResult> d_weights, std::vector<MaybeResult> d_biases, std::vector<bool> bfloat16,
         int threads) {
        std::vector<LinearMap> maps;
        for (std::size_t j = 0; j < weights.size(); ++j)
          maps.push_back({sizes.at("OUT_j", j), weights[j], d_outs[j], d_weights[j], d_biases[j], is_set(bfloat16, j)});
        linears_backward(sizes["N"], sizes["IN"], x, std::move(maps), dx, threads);
      }, "bfloat16"_a = std::vector<bool>());
  def(m, "frozen_linears", "x: N... IN, " + kFrozen + "outs: N... OUT_j", "out_j = x W_j^T of frozen weights.",
      [](Sizes& sizes, Floats x, FrozenFloats floats, FrozenHalves bf16, FrozenWords packed, FrozenFloats scales,
         FrozenFloats offsets, std::vector<Result> outs, std::vector<bool> bfloat16, bool rounds, int threads) {
        std::vector<LinearMap> maps;
        for (std::size_t j = 0; j < outs.size(); ++j)
          maps.push_back({sizes.at("OUT_j", j), frozen(sizes, j, floats, bf16, packed, scales, offsets), nullptr, outs[j],
                          nullptr, is_set(bfloat16, j), rounds && is_set(bfloat16, j)});
        linears_forward(sizes["N"], sizes["IN"], x, std::move(maps), threads);
      }, "bfloat16"_a = std::vector<bool>(), "rounds"_a = true);
  def(m, "frozen_linears_grad", kFrozen + "d_outs: N... OUT_j, dx: N... IN", "",
      [](Sizes& sizes, FrozenFloats floats, FrozenHalves bf16, FrozenWords packed, FrozenFloats scales,
         FrozenFloats offsets, std::vector<Floats> d_outs, Result dx, std::vector<bool> bfloat16, int threads) {
        std::vector<LinearMap> maps;
        for (std::size_t j = 0; j < d_outs.size(); ++j)
          maps.push_back({sizes.at("OUT_j", j), frozen(sizes, j, floats, bf16, packed, scales, offsets), d_outs[j],
                          nullptr, nullptr, is_set(bfloat16, j)});
        linears_backward(sizes["N"], sizes["IN"], nullptr, std::move(maps), dx, threads);
      }, "bfloat16"_a = std::vector<bool>());
  def(m, "quantize", "w: OUT IN, packed: OUT WORDS, scales: OUT GROUPS, offsets: OUT GROUPS",
      "Quantize to 4 or 8 bits: w is nearly scale * q + offset.",
      [](Sizes& sizes, Floats w, std::uint32_t* packed, Result scales, Result offsets, int threads) {
        sizes.expect_positive({"IN"});
        const Index in = sizes["IN"], words = sizes["WORDS"], groups = sizes["GROUPS"];
        const Index bits = in * 4 == words * 32 ? 4 : 8;
        require(in * bits == words * 32 && groups > 0 && words % groups == 0, "packed has ", words, " words and ", groups,
                " groups in a row, which are no ", in, " numbers of 4 or 8 bits");
        quantize(sizes["OUT"], in, in / groups, static_cast<int>(bits), w, packed, scales, offsets, threads);
      });
  def(m, "round_to_bfloat16", "x: N...", "Round to the nearest bfloat16, or to the even one.",
      [](Sizes& sizes, Result x, int threads) {
        in_pieces(sizes["N"], 65536, threads, [=](Index at, Index n) { round_to_bfloat16(n, x + at); });
      });
  for (const auto bind : {bind_activation, bind_attention, bind_block_diagonal, bind_conv, bind_long_conv, bind_loss,
                          bind_mlstm, bind_norms, bind_recurrence, bind_regression, bind_scan, bind_slstm})
    bind(m);
}
