// Python names of the sLSTM cell; for arguments see bind_ops.cpp.
#include "arguments.h"
#include "slstm.h"

namespace mlxhog {
namespace {

using Starts = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;

SlstmShape cell_shape(const In& h, const std::optional<Starts>& starts) {
  if (h.ndim() != 4 || h.size() == 0)
    throw nb::value_error("the gates and h must be (B, S, NH, DH) with at least one position of one sequence");
  const SlstmShape s{axis(h, 0), axis(h, 1), axis(h, 2), axis(h, 3)};
  if (starts) expect("starts", *starts, {s.B, s.S});
  return s;
}

SlstmState state_of(const SlstmShape& s, const char* names[4], Out& h, Out& c, Out& n, Out& m) {
  Out* parts[] = {&h, &c, &n, &m};
  for (int j = 0; j < 4; ++j) expect(names[j], *parts[j], {s.B, s.width()});
  return {h.data(), c.data(), n.data(), m.data()};
}

void slstm(const In& i, const In& f, const In& z, const In& o, const In& R, const In& b, std::optional<Starts> starts,
           Out h, std::optional<Out> tape, Out h_state, Out c, Out n, Out m, int threads) {
  const SlstmShape s = cell_shape(i, starts);
  expect("f", f, size(i));
  expect("z", z, size(i));
  expect("o", o, size(i));
  expect("R", R, {4, s.width(), s.DH});
  expect("b", b, {4, s.width()});
  expect("h", h, size(i));
  if (tape) expect("tape", *tape, {size(i), kSlstmTape});
  const char* names[] = {"h_state", "c", "n", "m"};
  const SlstmState state = state_of(s, names, h_state, c, n, m);
  const SlstmInputs in{i.data(), f.data(), z.data(), o.data(), R.data(), b.data(), data_or_null(starts)};
  nb::gil_scoped_release release;
  slstm_forward(s, in, state, h.data(), data_or_null(tape), threads);
}

void slstm_grad(const In& R, std::optional<Starts> starts, const In& h0, const In& c0, const In& n0, const In& h,
                const In& tape, const In& dh, Out di, Out df, Out dz, Out d_o, Out dR, Out db, Out dh_state, Out dc,
                Out dn, Out dm, int threads) {
  const SlstmShape s = cell_shape(h, starts);
  expect("R", R, {4, s.width(), s.DH});
  expect("h0", h0, {s.B, s.width()});
  expect("c0", c0, {s.B, s.width()});
  expect("n0", n0, {s.B, s.width()});
  expect("tape", tape, {size(h), kSlstmTape});
  expect("dh", dh, size(h));
  expect("di", di, size(h));
  expect("df", df, size(h));
  expect("dz", dz, size(h));
  expect("do", d_o, size(h));
  expect("dR", dR, size(R));
  expect("db", db, {4, s.width()});
  const char* names[] = {"dh_state", "dc", "dn", "dm"};
  const SlstmState d_state = state_of(s, names, dh_state, dc, dn, dm);
  const SlstmSaved saved{R.data(), h0.data(), c0.data(), n0.data(), h.data(), tape.data(), data_or_null(starts)};
  nb::gil_scoped_release release;
  slstm_backward(s, saved, dh.data(),
                 {di.data(), df.data(), dz.data(), d_o.data(), dR.data(), db.data(), d_state}, threads);
}

}  // namespace
}  // namespace mlxhog

void bind_slstm(nb::module_& m) {
  using namespace nb::literals;
  using namespace mlxhog;
  m.attr("SLSTM_TAPE") = static_cast<Index>(kSlstmTape);
  m.def("slstm", &slstm, A("i"), A("f"), A("z"), A("o"), A("R"), A("b"), A("starts").none(), A("h"), A("tape").none(),
        A("h_state"), A("c"), A("n"), A("m"), nb::kw_only(), "threads"_a,
        "sLSTM cell. i, f, z, o, h (B,S,NH,DH), R (NH,4*DH,DH), b (4*NH*DH,), starts uint8 (B,S) or None; tape "
        "(B,S,NH,SLSTM_TAPE,DH) for slstm_grad, or None; h_state, c, n, m (B,NH,DH) hold the initial state on entry "
        "and the final one on return.");
  m.def("slstm_grad", &slstm_grad, A("R"), A("starts").none(), A("h0"), A("c0"), A("n0"), A("h"), A("tape"), A("dh"),
        A("di"), A("df"), A("dz"), A("do"), A("dR"), A("db"), A("dh_state"), A("dc"), A("dn"), A("dm"), nb::kw_only(),
        "threads"_a,
        "Exact gradients of slstm; dh_state, dc, dn, dm hold the final state's gradient on entry and the initial "
        "state's on return.");
}
