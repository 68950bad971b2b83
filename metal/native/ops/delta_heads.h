// The forward pass of a head chunk by chunk, for every form of the delta rule. A form has a `Chunk` of inputs and
// advance(chunk, DK, column, S, h, held), which takes sixteen columns of a state over it.
#pragma once

#include <algorithm>

#include "delta.h"
#include "heads.h"
#include "lanes.h"

namespace mlxhog {

// A state (DK, DV) in whole lanes; zeros if it is null.
template <class Chunk>
void load_state(const DeltaShape& s, const Chunk& c, const float* state, float* S) {
  std::fill_n(S, c.PK * c.PV, 0.0f);
  if (state) copy_rows(s.DK, s.DV, state, s.DV, S, c.PV);
}

template <class Chunk>
struct Forward {
  Chunk chunk;
  Buffer S, h;

  explicit Forward(const DeltaShape& s)
      : chunk(s), S(uninitialised(chunk.PK * chunk.PV)), h(uninitialised(s.chunk() * chunk.PV)) {}
};

template <class Chunk, class Inputs>
void forward_head(const DeltaShape& s, const Inputs& in, Index b, Index head, Forward<Chunk>& work, float* h,
                  float* last, float* kept, float* held) {
  Chunk& c = work.chunk;
  const Index pair = b * s.NH + head, state = s.DK * s.DV, ld = s.NH * s.DV;
  load_state(s, c, in.state ? in.state + pair * state : nullptr, work.S.get());
  for (Index n = 0; n < s.chunks(); ++n) {
    const Index row = (b * s.S + n * s.chunk()) * s.NH + head;
    c.load_inputs(s, in, b, head, n);
    if (kept) copy_rows(s.DK, s.DV, work.S.get(), c.PV, kept + (pair * s.chunks() + n) * state, s.DV);
    for (Index column = 0; column < c.PV; column += kLaneCount)
      advance(c, s.DK, column, work.S.get(), work.h.get(), c.held.get());
    copy_rows(c.L, s.DV, work.h.get(), c.PV, h + row * s.DV, ld);
    if (held) copy_rows(c.L, s.DV, c.held.get(), c.PV, held + row * s.DV, ld);
  }
  copy_rows(s.DK, s.DV, work.S.get(), c.PV, last + pair * state, s.DV);
}

template <class Chunk, class Inputs>
void forward_heads(const DeltaShape& s, const Inputs& in, float* h, float* last, float* kept, float* held,
                   int threads) {
  for_each_head(s.B, s.NH, std::min(s.DK, s.DV), threads, [&] { return Forward<Chunk>(s); },
                [&](Index b, Index head, Forward<Chunk>& work) {
                  forward_head(s, in, b, head, work, h, last, kept, held);
                });
}

}  // namespace mlxhog
