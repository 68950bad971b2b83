// Why a launch failed. Thrown inside a Metal thread, caught before it ends, reported to Python.
#pragma once

#include <stdexcept>
#include <string>

#include "shim/runtime.h"

namespace metal_emulator {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string name(const SourceLocation& location) {
  return std::string(location.call) + " at " + location.file + ":" + std::to_string(location.line);
}

}  // namespace metal_emulator
