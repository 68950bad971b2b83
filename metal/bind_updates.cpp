#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_updates(nb::module_&) {}
