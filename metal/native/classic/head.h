// The hot head of a sparse model: the first coordinates, which nearly every example touches, kept in a
// private copy per worker and merged into the shared vector under locks.
//
// Nothing but merges writes the shared head while a run lasts, so they may agree on their exclusion unit: the
// lock word of the first row of each 4 KiB (8 ns of lock on 64 bytes would cost more than the sums).
//
// shared += mine - base; mine = base = shared. Nothing of the head is lost; it only travels later. Where
// no other worker has written (shared == base) the merge stores `mine` itself, so that one worker's head has the
// bits of serial SGD. After the remark on contended variables in Niu et al. 2011.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "../updates/steps.h"
#include "access.h"
#include "dense_elements.h"

namespace mlxhog::classic {

class Head {
 public:
  // The first `hot` floats of `x`, whose row r of `width` floats has lock word `word0 + r`.
  Head(float* x, std::size_t hot, std::size_t width, Locks* locks, std::size_t word0)
      : x_(x), width_(width), locks_(locks), word0_(word0), mine_(hot), base_(hot) {
    for (std::size_t u = 0; u < hot; ++u) mine_[u] = base_[u] = Relaxed::load(x + u);
  }

  float* mine() { return mine_.data(); }

  // Stripe by stripe from the `start`-th on with wrap-around, so that workers rarely meet.
  void merge(std::size_t start) {
    const std::size_t floats = std::max(width_, kStripe - kStripe % width_);
    const std::size_t count = (mine_.size() + floats - 1) / floats;
    for (std::size_t k = 0; k < count; ++k) {
      const std::size_t at = (start + k) % count * floats, word = word0_ + at / width_;
      locks_->lock(word);
      mlxhog_dense_merge(x_ + at, mine_.data() + at, base_.data() + at, std::min(floats, mine_.size() - at));
      locks_->unlock(word);
    }
  }

 private:
  float* x_;
  std::size_t width_;
  Locks* locks_;
  std::size_t word0_;
  std::vector<float> mine_, base_;
};

}  // namespace mlxhog::classic
