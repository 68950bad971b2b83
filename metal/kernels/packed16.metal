#include "packed16.h"

[[kernel]] void packed16_add_half(device uint* arena [[buffer(0)]], const device uint* g [[buffer(1)]],
                                  device uint* failures [[buffer(2)]], constant uint& n_words [[buffer(3)]],
                                  constant uint& offset [[buffer(4)]], device uint* done [[buffer(5)]],
                                  uint3 at [[thread_position_in_grid]]) {
  mlxhog::packed16_add<half>(arena, g, failures, n_words, offset, done, at.x);
}

[[kernel]] void packed16_add_bfloat(device uint* arena [[buffer(0)]], const device uint* g [[buffer(1)]],
                                    device uint* failures [[buffer(2)]], constant uint& n_words [[buffer(3)]],
                                    constant uint& offset [[buffer(4)]], device uint* done [[buffer(5)]],
                                    uint3 at [[thread_position_in_grid]]) {
  mlxhog::packed16_add<bfloat>(arena, g, failures, n_words, offset, done, at.x);
}
