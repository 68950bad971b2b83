#include "counting.h"

[[kernel]] void atomic_count(device float* shared [[buffer(0)]],
                             constant float& step [[buffer(1)]],
                             constant uint& words [[buffer(2)]],
                             device uint* done [[buffer(3)]],
                             uint3 at [[thread_position_in_grid]]) {
  mlxhog::atomic_count(shared, step, words, done, at.x);
}

[[kernel]] void plain_count(device float* shared [[buffer(0)]],
                            constant float& step [[buffer(1)]],
                            constant uint& words [[buffer(2)]],
                            device uint* done [[buffer(3)]],
                            uint3 at [[thread_position_in_grid]]) {
  mlxhog::plain_count(shared, step, words, done, at.x);
}

[[kernel]] void pair_count(device uint* shared [[buffer(0)]],
                           constant float& step [[buffer(1)]],
                           constant uint& words [[buffer(2)]],
                           device uint* failures [[buffer(3)]],
                           device uint* done [[buffer(4)]],
                           uint3 at [[thread_position_in_grid]]) {
  mlxhog::pair_count(shared, step, words, failures, done, at.x);
}
