#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_arena(nb::module_&) {}
