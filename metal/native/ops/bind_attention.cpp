// Python names of attention and of its position embedding.
#include <optional>
#include <string>

#include "arguments.h"
#include "attention.h"
#include "rope.h"

namespace mlxhog {
namespace {

using Counts = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void turn(const In& x, const std::optional<Counts>& offset, Out out, double base, bool back, int threads) {
  if (x.ndim() != 4) throw nb::value_error("x must be (B, S, NH, DH)");
  const RopeShape s{axis(x, 0), axis(x, 1), axis(x, 2), axis(x, 3), base, data_or_null(offset)};
  if (s.DH % 2)
    throw nb::value_error(("x has heads of " + std::to_string(s.DH) + "; pairs need an even number").c_str());
  if (offset) expect("offset", *offset, s.B);
  expect("out", out, size(x));
  nb::gil_scoped_release release;
  rope(s, x.data(), back, out.data(), threads);
}

AttentionShape attention_shape(const In& q, const In& k, const In& v, const std::optional<Counts>& lengths,
                               std::optional<Index> window) {
  if (q.ndim() != 4 || k.ndim() != 4) throw nb::value_error("q must be (B, S, NH, DH) and k (B, L, NH, DH)");
  if (window && *window < 0) throw nb::value_error("window must be 0 or more, or None");
  const Index B = axis(q, 0), S = axis(q, 1), L = axis(k, 1), NH = axis(q, 2), DH = axis(q, 3);
  expect("k", k, {B, L, NH, DH});
  expect("v", v, {B, L, NH, DH});
  if (L < S)
    throw nb::value_error(("k has " + std::to_string(L) + " positions, q " + std::to_string(S) +
                           "; the last keys are the queries' own, so there are as many or more")
                              .c_str());
  if (lengths) {
    expect("lengths", *lengths, B);
    for (Index b = 0; b < B; ++b)
      if (const std::int32_t length = lengths->data()[b]; length < S || length > L)
        throw nb::value_error(("lengths has " + std::to_string(length) + " at " + std::to_string(b) + ", expected " +
                               std::to_string(S) + " to " + std::to_string(L))
                                  .c_str());
  }
  // A window as long as the keys hides none.
  return {B, S, L, NH, DH, window && *window < L ? *window : -1, data_or_null(lengths)};
}

void attention(const In& q, const In& k, const In& v, const std::optional<Counts>& lengths, Out out, Out lse,
               std::optional<Index> window, int threads) {
  const AttentionShape s = attention_shape(q, k, v, lengths, window);
  expect("out", out, size(q));
  expect("lse", lse, {s.B, s.NH, s.S});
  nb::gil_scoped_release release;
  attention_forward(s, {q.data(), k.data(), v.data()}, out.data(), lse.data(), threads);
}

void attention_grad(const In& q, const In& k, const In& v, const std::optional<Counts>& lengths, const In& lse,
                    const In& d_out, Out dq, Out dk, Out dv, std::optional<Index> window, int threads) {
  const AttentionShape s = attention_shape(q, k, v, lengths, window);
  expect("lse", lse, {s.B, s.NH, s.S});
  expect("d_out", d_out, size(q));
  expect("dq", dq, size(q));
  expect("dk", dk, size(k));
  expect("dv", dv, size(v));
  nb::gil_scoped_release release;
  attention_backward(s, {q.data(), k.data(), v.data()}, lse.data(), d_out.data(),
                     {dq.data(), dk.data(), dv.data()}, threads);
}

}  // namespace
}  // namespace mlxhog

void bind_attention(nb::module_& m) {
  using namespace nb::literals;
  using namespace mlxhog;
  m.def("rope", &turn, A("x"), A("offset").none(), A("out"), nb::kw_only(), "base"_a, "back"_a, "threads"_a,
        "Turns elements i and DH / 2 + i of x (B,S,NH,DH) by (offset + t) * base^(-2 i / DH); offset (B,) int32 or "
        "None. `back` turns the other way: the gradient.");
  m.def("attention", &attention, A("q"), A("k"), A("v"), A("lengths").none(), A("out"), A("lse"), nb::kw_only(),
        "window"_a.none(), "threads"_a,
        "Causal softmax(q k^T / sqrt(DH)) v. q, out (B,S,NH,DH); k, v (B,L,NH,DH), the last S of them the queries' "
        "own; lengths (B,) int32, how many of the last keys exist, or None; lse (B,NH,S), log of the sums.");
  m.def("attention_grad", &attention_grad, A("q"), A("k"), A("v"), A("lengths").none(), A("lse"), A("d_out"), A("dq"), A("dk"), A("dv"), nb::kw_only(), "window"_a.none(), "threads"_a);
}
