#include "deep.h"

[[kernel]] void deep(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                     uint3 at [[thread_position_in_grid]], uint3 size [[threads_per_grid]]) {
  mlxhog::deep(x, y, at.x, size.x);
}
