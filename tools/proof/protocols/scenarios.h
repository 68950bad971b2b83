// The scenarios, by the functions that make them; making one also sets the memory before its run.
#pragma once

#include <span>

#include "search.h"

namespace proof {

using Make = Scenario (*)();

std::span<const Make> scenarios();

}  // namespace proof
