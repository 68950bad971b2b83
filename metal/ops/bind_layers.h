// Adds the operators around the cells to the Python module of the operators.
#pragma once

#include <nanobind/nanobind.h>

namespace mlxhog {

void bind_layers(nanobind::module_& ops);

}  // namespace mlxhog
