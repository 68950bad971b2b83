// Python names of the sLSTM cell.
#include <cstdint>

#include "shapes.h"
#include "slstm.h"

namespace mlxhog {
namespace {

SlstmShape cell_shape(const Sizes& sizes) {
  sizes.expect_positive({"B", "S", "NH", "DH"});
  return sizes.as<SlstmShape>("B", "S", "NH", "DH");
}

}  // namespace
}  // namespace mlxhog

void bind_slstm(nb::module_& m) {
  using namespace nb::literals;
  using namespace mlxhog;
  m.attr("SLSTM_TAPE") = static_cast<Index>(kSlstmTape);
  const std::string tape = "tape: B S NH " + std::to_string(kSlstmTape) + " DH, ";
  def(m, "slstm",
      "i f z o: B S NH DH, R: NH 4*DH DH, b: 4*NH*DH, starts: B S, h: B S NH DH, " + tape +
      "h_state c n m: B NH DH",
      "sLSTM cell. starts uint8 or None; tape for slstm_grad, or None,; h_state, c, n, m hold "
      "the initial state on entry and the final one on return.",
      [](Sizes& sizes, Floats i, Floats f, Floats z, Floats o, Floats R, Floats b, Maybe<const std::uint8_t> starts,
         Result h, MaybeResult tape, Result h_state, Result c, Result n, Result m, int threads) {
        slstm_forward(cell_shape(sizes), {i, f, z, o, R, b, starts}, {h_state, c, n, m}, h, tape, threads);
      });
  def(m, "slstm_grad",
      "R: NH 4*DH DH, starts: B S, h0 c0 n0: B NH DH, h: B S NH DH, " + tape +
      "dh di df dz do: B S NH DH, dR: NH 4*DH DH, db: 4*NH*DH, dh_state dc dn dm: B NH DH",
      "Exact gradients of slstm; dh_state, dc, dn, dm hold the final state's gradient on entry and the initial "
      "state's on return.",
      [](Sizes& sizes, Floats R, Maybe<const std::uint8_t> starts, Floats h0, Floats c0, Floats n0, Floats h,
         Floats tape, Floats dh, Result di, Result df, Result dz, Result d_o, Result dR, Result db, Result dh_state,
         Result dc, Result dn, Result dm, int threads) {
        slstm_backward(cell_shape(sizes), {R, h0, c0, n0, h, tape, starts}, dh,
                       {di, df, dz, d_o, dR, db, {dh_state, dc, dn, dm}}, threads);
      });
}
