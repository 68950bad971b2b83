// The extension module: every binding file registers its own functions here.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_arena(nb::module_& m);
void bind_updates(nb::module_& m);
void bind_classic(nb::module_& m);
void bind_ops(nb::module_& m);
void bind_decode(nb::module_& m);

NB_MODULE(_native, m) {
  m.doc() =
      "Native kernels of mlxhog: shared-memory updates, arena control words, model operators, classic problems, "
      "counted n-grams.";
  bind_arena(m);
  bind_updates(m);
  bind_classic(m);
  bind_ops(m);
  bind_decode(m);
}
