// Python names of attention and of its position embedding.
#include <cstdint>
#include <optional>
#include <string>

#include "attention.h"
#include "shapes.h"

namespace mlxhog {
namespace {

using MaybeCounts = Maybe<const std::int32_t>;

AttentionShape attention_shape(const Sizes& sizes, MaybeCounts lengths, std::optional<Index> window) {
  if (window && *window < 0) throw nb::value_error("window must be 0 or more, or None");
  const Index B = sizes["B"], S = sizes["S"], L = sizes["L"];
  if (L < S)
    throw nb::value_error(("k has " + std::to_string(L) + " positions, q " + std::to_string(S) +
                           "; the last keys are the queries' own, so there are as many or more")
                              .c_str());
  for (Index b = 0; lengths && b < B; ++b)
    if (const std::int32_t length = lengths.data[b]; length < S || length > L)
      throw nb::value_error(("lengths has " + std::to_string(length) + " at " + std::to_string(b) + ", expected " +
                             std::to_string(S) + " to " + std::to_string(L))
                                .c_str());
  // A window as long as the keys hides none.
  return {B, S, L, sizes["NH"], sizes["DH"], window && *window < L ? *window : -1, lengths};
}

}  // namespace
}  // namespace mlxhog

void bind_attention(nb::module_& m) {
  using namespace nb::literals;
  using namespace mlxhog;
  def(m, "rope", "x: B S NH DH, offset: B, out: B S NH DH",
      "Turns elements i and DH / 2 + i of x by (offset + t) * base^(-2 i / DH); offset int32 or None. `back` turns the "
      "other way: the gradient.",
      [](Sizes& sizes, Floats x, MaybeCounts offset, Result out, double base, bool back, int threads) {
        const RopeShape s{sizes["B"], sizes["S"], sizes["NH"], sizes["DH"], base, offset};
        if (s.DH % 2)
          throw nb::value_error(("x has heads of " + std::to_string(s.DH) + "; pairs need an even number").c_str());
        rope(s, x, back, out, threads);
      }, "base"_a, "back"_a);
  def(m, "attention", "q: B S NH DH, k v: B L NH DH, lengths: B, out: B S NH DH, lse: B NH S",
      "Causal softmax(q k^T / sqrt(DH)) v. The last S of k and v are the queries' own; lengths int32, how many of the "
      "last keys exist, or None; lse, log of the sums.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, MaybeCounts lengths, Result out, Result lse,
         std::optional<Index> window, int threads) {
        attention_forward(attention_shape(sizes, lengths, window), {q, k, v}, out, lse, threads);
      }, "window"_a.none());
  def(m, "attention_grad",
      "q: B S NH DH, k v: B L NH DH, lengths: B, lse: B NH S, d_out dq: B S NH DH, dk dv: B L NH DH", "",
      [](Sizes& sizes, Floats q, Floats k, Floats v, MaybeCounts lengths, Floats lse, Floats d_out, Result dq,
         Result dk, Result dv, std::optional<Index> window, int threads) {
        attention_backward(attention_shape(sizes, lengths, window), {q, k, v}, lse, d_out, {dq, dk, dv}, threads);
      }, "window"_a.none());
}
