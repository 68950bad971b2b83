// The hot head of a sparse model: the first coordinates, which nearly every example touches, kept in a
// private copy per worker and merged into the shared vector under row locks.
//
// shared += mine - base; mine = base = shared. Nothing of the head is lost; it only travels later. Where
// nobody else has written (shared == base) the merge stores `mine` itself, so that one worker's head has the
// bits of serial SGD. Source: spec hogwild.md 4, after the paper's remark on contended variables.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "access.h"

namespace mlxhog::classic {

class Head {
 public:
  // The first `hot` floats of `x`, whose row r of `width` floats has lock word `word0 + r`.
  Head(float* x, std::size_t hot, std::size_t width, Locks* locks, std::size_t word0)
      : x_(x), width_(width), locks_(locks), word0_(word0), mine_(hot), base_(hot) {
    for (std::size_t u = 0; u < hot; ++u) mine_[u] = base_[u] = Relaxed::load(x + u);
  }

  float* mine() { return mine_.data(); }

  // Row by row from `start` on with wrap-around, so that workers rarely meet.
  void merge(std::size_t start) {
    const std::size_t rows = (mine_.size() + width_ - 1) / width_;
    for (std::size_t k = 0; k < rows; ++k) {
      const std::size_t r = (start + k) % rows;
      locks_->lock(word0_ + r);
      for (std::size_t u = r * width_; u < std::min((r + 1) * width_, mine_.size()); ++u) {
        const float shared = Relaxed::load(x_ + u);
        const float next = shared == base_[u] ? mine_[u] : shared + (mine_[u] - base_[u]);
        Relaxed::store(x_ + u, next);
        mine_[u] = base_[u] = next;
      }
      locks_->unlock(word0_ + r);
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
