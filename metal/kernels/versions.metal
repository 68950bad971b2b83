#include "versions.h"

[[kernel]] void version_bump(device uint* counters [[buffer(0)]], const device int* blocks [[buffer(1)]],
                             constant uint& n [[buffer(2)]], constant uint& n_counters [[buffer(3)]],
                             device uint* done [[buffer(4)]], uint3 at [[thread_position_in_grid]]) {
  mlxhog::version_bump(counters, blocks, n, n_counters, done, at.x);
}
