// Why a launch failed. Thrown inside a Metal thread, caught before it ends, reported to Python.
#pragma once

#include <stdexcept>
#include <string>

#include "shim/runtime.h"

namespace metal_host {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string name(const Place& place) {
  return std::string(place.call) + " at " + place.file + ":" + std::to_string(place.line);
}

}  // namespace metal_host
