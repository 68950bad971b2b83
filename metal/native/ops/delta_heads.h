// A head's passes chunk by chunk, for every form of the delta rule. A form has a `Chunk` of inputs with
// load_inputs(shape, inputs, b, head, chunk), and advance(chunk, DK, column, S, h, held), which takes sixteen columns
// of a state over it.
#pragma once

#include <algorithm>

#include "delta.h"
#include "gemm.h"
#include "heads.h"
#include "lanes.h"

namespace mlxhog {

constexpr Index kRows = 4;  // of a transposed state, in registers together

// One chunk's rows of a value's width in whole lanes (the rest is 0), (L, PV).
struct ChunkRows {
  Index L = 0, PK, PV;
  Buffer v, held, dh;

  explicit ChunkRows(const DeltaShape& s)
      : PK(whole_lanes(s.DK)),
        PV(whole_lanes(s.DV)),
        v(uninitialised(s.chunk() * PV)),
        held(uninitialised(s.chunk() * PV)),
        dh(uninitialised(s.chunk() * PV)) {}

  // An array of the shape of v, from a row on.
  void load_columns(const DeltaShape& s, const float* from, Index row, float* to) const {
    copy_rows(L, s.DV, from + row * s.DV, s.NH * s.DV, to, PV, PV);
  }
};

// A state (DK, DV) in whole lanes; zeros if it is null.
inline void load_state(const DeltaShape& s, const ChunkRows& c, const float* state, float* S) {
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

// S before a chunk and dS, the gradient of the state after it, (PK, PV) each, and both transposed; and room for the
// states (L + 1, kRows, lanes) of some columns.
template <class Chunk>
struct BackwardStates {
  Chunk chunk;
  Buffer S, S_T, dS, dS_T, history;

  explicit BackwardStates(const DeltaShape& s)
      : chunk(s), history(uninitialised((s.chunk() + 1) * kRows * kLaneCount)) {
    for (Buffer* buffer : {&S, &S_T, &dS, &dS_T}) *buffer = uninitialised(chunk.PK * chunk.PV);
  }
};

// The chunks of a head from the last to the first. retreat(row) takes dS and dS_T over the one that begins at a row,
// and stores its gradients.
template <class Chunk, class Inputs, class Retreat>
void backward_head(const DeltaShape& s, const Inputs& in, const float* kept, const float* held, const float* dh,
                   const float* d_last, float* d_state, Index b, Index head, BackwardStates<Chunk>& work,
                   const Retreat& retreat) {
  Chunk& c = work.chunk;
  const Index pair = b * s.NH + head, state = s.DK * s.DV;
  load_state(s, c, d_last ? d_last + pair * state : nullptr, work.dS.get());
  transpose(work.dS.get(), c.PV, c.PK, c.PV, work.dS_T.get());
  for (Index n = s.chunks() - 1; n >= 0; --n) {
    const Index row = (b * s.S + n * s.chunk()) * s.NH + head;
    c.load_inputs(s, in, b, head, n);
    c.load_columns(s, held, row, c.held.get());
    c.load_columns(s, dh, row, c.dh.get());
    load_state(s, c, kept + (pair * s.chunks() + n) * state, work.S.get());
    transpose(work.S.get(), c.PV, c.PK, c.PV, work.S_T.get());
    retreat(row);
  }
  if (d_state) copy_rows(s.DK, s.DV, work.dS.get(), c.PV, d_state + pair * state, s.DV);
}

}  // namespace mlxhog
