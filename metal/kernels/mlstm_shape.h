// Sizes and layouts that the kernels of the mLSTM cell share.
#pragma once

#include <metal_stdlib>

using namespace metal;

namespace mlxhog {

enum : uint {
  kMlstmChunk = 64,  // the longest chunk: its keys fit the memory of a threadgroup, its weights that of a thread
  kMlstmLanes = 32,  // a simdgroup; a threadgroup is whole simdgroups
};

// The sizes of one launch; the shapes of its arrays are in mlstm.py. `head` counts the B * NH pairs.
struct MlstmShape {
  uint B, NH, S, L, DK, DV;
};

inline uint mlstm_chunks(MlstmShape s) { return (s.S + s.L - 1) / s.L; }

// Positions of chunk c; the last chunk may be shorter than L.
inline uint mlstm_count(MlstmShape s, uint c) { return min(s.L, s.S - c * s.L); }

// Row of a (B, S, NH, ...) array, for position t of a head.
inline uint mlstm_row(MlstmShape s, uint head, uint t) { return (head / s.NH * s.S + t) * s.NH + head % s.NH; }

// Row of a (B, NH, NC + 1, ...) array, for the state before chunk c.
inline uint mlstm_state(MlstmShape s, uint head, uint c) { return head * (mlstm_chunks(s) + 1) + c; }

// The first position of a chunk that is of a document: `since` is 1 + the position where it starts, 0 if it started
// before the chunk. Two positions are of one document where their `since` are equal.
inline uint mlstm_first(int since) { return since == 0 ? 0 : uint(since - 1); }

// DK^-1/2, the scale of every product of a query and a key.
inline float mlstm_scale(MlstmShape s) { return precise::rsqrt(float(s.DK)); }

}  // namespace mlxhog
