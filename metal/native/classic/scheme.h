// The ways to let several workers run one problem, all around the same inner loop.
//
// A problem is a class with
//
//   std::size_t n() const                      number of examples
//   struct Scratch                             memory of one worker between read and write; built by
//                                              Scratch(problem, batch, frozen)
//   MLXHOG_PREFETCH void prefetch(order, i, count)
//                                              example order[i] (if i < count) comes after this one
//   template <class Access>
//   void read(examples, b, access, scratch)    the mean gradient of `b` examples at x as it is now
//   template <class Access>
//   void write(examples, b, access, scratch, step)
//                                              x -= step * (sum of the b gradients), projected where the
//                                              problem says so; touches only the examples' coordinates
//   template <class Visit>
//   void touched(examples, b, scratch, visit)  visit(word) for the lock word of every row that write() will
//                                              touch, counted from the scheme's row_word0; any order,
//                                              repetitions allowed
//   std::size_t words() const                  lock words it may name
//
// and, if it has a hot head (coordinates sorted by frequency),
//
//   float* x() ; std::size_t width() const     the vector, and the floats of one of its lockable rows
//
// `frozen` asks that write() takes nothing from x as it is then: others have written since read(). Otherwise
// terms that only scale a coordinate (shrinking) may take its newest value. With one worker there is none.
//
// Promises. One worker of any scheme gives the bits of serial SGD. round_robin and sync give the same bits in every run
// with the same orders. A stop ends every loop within kBetweenChecks examples and every wait at once, except for a
// lock, which ends with its owner's write or death. Nothing of `lossless` and `aig` is lost. Each element is old or
// new, never torn. Source: Niu et al. 2011 (round-robin and AIG).
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../updates/steps.h"
#include "access.h"
#include "board.h"
#include "dense.h"

namespace mlxhog::classic {

enum class Kind { private_copy, racy, lossless, hot_cold, aig, round_robin, sync };

// One worker's place in a run.
struct Scheme {
  Kind kind;
  Board board;
  Locks* locks;  // null where the kind takes none
  std::size_t row_word0;
  std::uint32_t rank;
  std::size_t hot;              // hot_cold: coordinates in the head
  std::size_t period;           // hot_cold: examples between two merges
  float* probe;                 // null, or a counter raised by 1 the way this scheme writes
  std::size_t probe_every = 1;  // one of this number of examples of this worker
  std::size_t probe_seen = 0;
};

template <class P>
concept HasHead = requires(P problem) {
  { problem.x() } -> std::same_as<float*>;
  { problem.width() } -> std::convertible_to<std::size_t>;
};

inline constexpr std::size_t kBetweenChecks = 1024;

// One worker's share of an epoch; `step` is the learning rate for a whole gradient.
struct Share {
  const std::int32_t* order;
  std::size_t count;
  float gamma;
  std::size_t batch;

  std::size_t size_at(std::size_t i) const { return std::min(batch, count - i); }
  // Of the sum of `gradients` gradients: x moves by their mean.
  float step(std::size_t gradients) const { return gamma / static_cast<float>(gradients); }
};

template <class Access>
inline void raise_probe(Scheme& scheme, const Access& access, std::size_t examples) {
  if (scheme.probe == nullptr) return;
  for (std::size_t k = 0; k < examples; ++k)
    if (++scheme.probe_seen % scheme.probe_every == 0) access.update(scheme.probe, [](float v) { return v + 1.0f; });
}

// The loop of the schemes without turns; `write(examples, b, scratch)` follows each read.
template <class P, class Access, class Write>
std::size_t run_loop(Scheme& scheme, P& problem, const Share& share, const Access& access, Write write) {
  typename P::Scratch scratch(problem, share.batch, false);
  std::size_t i = 0;
  while (i < share.count && !scheme.board.stopped()) {
    const std::size_t from = i, end = std::min(share.count, i + kBetweenChecks);
    while (i < end) {
      const std::size_t b = share.size_at(i);
      problem.prefetch(share.order, i + b, share.count);
      problem.read(share.order + i, b, access, scratch);
      write(share.order + i, b, scratch);
      i += b;
    }
    scheme.board.count(scheme.rank, i - from);
  }
  return i;
}

// Everyone at once: no waiting but for the access policy's own locks.
template <class P, class Access>
std::size_t run_free(Scheme& scheme, P& problem, const Share& share, const Access& access) {
  return run_loop(scheme, problem, share, access, [&](const std::int32_t* examples, std::size_t b, auto& scratch) {
    problem.write(examples, b, access, scratch, share.step(b));
    raise_probe(scheme, access, b);
  });
}

// The hot head of a sparse model: the first coordinates, which nearly every example touches, kept in a
// private copy per worker and merged into the shared vector under locks.
//
// Nothing but merges writes the shared head, by the lock word of the first row of each 4 KiB (a lock for 64 bytes would
// cost more than the sums): shared += mine - base; mine = base = shared. Nothing is lost. Where no other worker has
// written (shared == base) the merge stores `mine` itself, so that one worker's head has the bits of serial SGD. After
// the remark on contended variables in Niu et al. 2011.
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

template <class P>
std::size_t run_hot_cold(Scheme& scheme, P& problem, const Share& share) {
  Head head(problem.x(), scheme.hot, problem.width(), scheme.locks, scheme.row_word0);
  const HotCold access{{}, head.mine(), scheme.hot};
  // Staggered: the workers' first merges are spread over one period.
  std::size_t left = std::max<std::size_t>(1, scheme.period * (scheme.rank + 1) / scheme.board.workers());
  const auto write = [&](const std::int32_t* examples, std::size_t b, auto& scratch) {
    problem.write(examples, b, access, scratch, share.step(b));
    raise_probe(scheme, access, b);
    if (left > b) {
      left -= b;
      return;
    }
    head.merge(scheme.rank);
    left = scheme.period;
  };
  const std::size_t done = run_loop(scheme, problem, share, access, write);
  head.merge(scheme.rank);
  return done;
}

// Every row that an example touches is locked while it is written; the gradient is computed outside.
template <class P>
std::size_t run_locked(Scheme& scheme, P& problem, const Share& share) {
  const Relaxed access;
  const Lossless counter;
  std::vector<std::size_t> words;
  return run_loop(scheme, problem, share, access, [&](const std::int32_t* examples, std::size_t b, auto& scratch) {
    words.clear();
    problem.touched(examples, b, scratch, [&](std::size_t word) {
      if (words.empty() || words.back() != word) words.push_back(word);
    });
    // Everyone locks in ascending order, so no two workers wait for each other.
    if (!std::is_sorted(words.begin(), words.end())) std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    for (const std::size_t word : words) scheme.locks->lock(scheme.row_word0 + word);
    problem.write(examples, b, access, scratch, share.step(b));
    for (const std::size_t word : words) scheme.locks->unlock(scheme.row_word0 + word);
    raise_probe(scheme, counter, b);
  });
}

// Writes go round: worker t modulo P writes turn t. The next gradient is gathered inside the own turn, at a
// staleness of exactly P - 1 writes.
template <class P>
std::size_t run_round_robin(Scheme& scheme, P& problem, const Share& share) {
  typename P::Scratch scratch(problem, share.batch, false);
  const Relaxed access;
  Board& board = scheme.board;
  std::uint64_t turn = scheme.rank;
  std::size_t i = 0;
  if (share.count > 0) {
    problem.read(share.order, share.size_at(0), access, scratch);
    board.announce(scheme.rank, 1);
    // No worker writes before all have read their first gradient, or the first turns would depend on the schedule.
    if (!board.await_reads(1)) return 0;
  }
  while (i < share.count) {
    const std::size_t b = share.size_at(i), next = i + b;
    problem.prefetch(share.order, next, share.count);
    if (board.stopped() || !board.await_turn(turn)) return i;
    problem.write(share.order + i, b, access, scratch, share.step(b));
    raise_probe(scheme, access, b);
    if (next < share.count) problem.read(share.order + next, share.size_at(next), access, scratch);
    board.pass(turn);
    board.count(scheme.rank, b);
    turn += board.workers();
    i = next;
  }
  board.retire(scheme.rank);
  return i;
}

// Gradients of all workers at the same x; their mean is applied once, in the order of the ranks.
template <class P>
std::size_t run_sync(Scheme& scheme, P& problem, const Share& share) {
  typename P::Scratch scratch(problem, share.batch, true);
  const Relaxed access;
  Board& board = scheme.board;
  const std::uint64_t workers = board.workers();
  std::size_t i = 0;
  for (std::uint64_t step = 0; i < share.count; ++step) {
    if (board.stopped()) return i;
    const std::size_t b = share.size_at(i);
    problem.prefetch(share.order, i + b, share.count);
    problem.read(share.order + i, b, access, scratch);
    board.announce(scheme.rank, step + 1);
    if (!board.await_reads(step + 1)) return i;
    // The workers that take part stay at step + 1 until all have written, so all count the same.
    std::uint64_t parts = 0;
    for (std::uint32_t r = 0; r < workers; ++r) parts += board.reads(r) != kGone;
    if (!board.await_turn(step * workers + scheme.rank)) return i;
    problem.write(share.order + i, b, access, scratch, share.step(b * std::max<std::uint64_t>(1, parts)));
    raise_probe(scheme, access, b);
    board.pass(step * workers + scheme.rank);
    board.count(scheme.rank, b);
    i += b;
    if (!board.await_turn((step + 1) * workers)) return i;
  }
  board.retire(scheme.rank);
  return i;
}

// One worker's share under its scheme; returns the examples done, fewer than asked only if stopped.
template <class P>
std::size_t run(Scheme& scheme, P& problem, const Share& share) {
  switch (scheme.kind) {
    case Kind::private_copy:
    case Kind::racy: return run_free(scheme, problem, share, Relaxed{});
    case Kind::lossless: return run_free(scheme, problem, share, Lossless{{}, scheme.locks, scheme.row_word0});
    case Kind::hot_cold:
      if constexpr (HasHead<P>) return run_hot_cold(scheme, problem, share);
      return 0;  // the binding has refused it
    case Kind::aig: return run_locked(scheme, problem, share);
    case Kind::round_robin: return run_round_robin(scheme, problem, share);
    case Kind::sync: return run_sync(scheme, problem, share);
  }
  return 0;
}

}  // namespace mlxhog::classic
