// Two threadgroup variables in one statement, which the shim does not take apart.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void two_variables(device float* x [[buffer(0)]], device uint* done [[buffer(1)]],
                   uint3 at [[thread_position_in_grid]]) {
  threadgroup float a[4], b[4]; a[0] = b[0] = x[0];
  done[at.x] = 1;
}
