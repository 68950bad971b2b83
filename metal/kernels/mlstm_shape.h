// Sizes and layouts that the kernels of the mLSTM cell share.
#pragma once

#include <metal_stdlib>

using namespace metal;

namespace mlxhog {

enum : uint {
  kMlstmChunk = 64,  // the longest chunk: as many positions as a tile has rows
  kMlstmLanes = 32,  // a simdgroup; a threadgroup is whole simdgroups
};

// The sizes of one launch; the shapes of its arrays are in mlstm.py. `head` counts the B * NH pairs. A segment is the NS
// chunks from FIRST on, whose states alone are in memory.
struct MlstmShape {
  uint B, NH, S, L, DK, DV, FIRST, NS;
};

inline uint mlstm_chunks(MlstmShape s) { return (s.S + s.L - 1) / s.L; }

// Positions of chunk c; the last chunk may be shorter than L.
inline uint mlstm_count(MlstmShape s, uint c) { return min(s.L, s.S - c * s.L); }

// Row of a (B, S, NH, ...) array, for position t of a head.
inline uint mlstm_row(MlstmShape s, uint head, uint t) { return (head / s.NH * s.S + t) * s.NH + head % s.NH; }

// Element of a (B, NH, NC + 1) array, for the state before chunk c.
inline uint mlstm_border(MlstmShape s, uint head, uint c) { return head * (mlstm_chunks(s) + 1) + c; }

// Row of a (B, NH, NS, ...) array, for the state of chunk c of the segment.
inline uint mlstm_state(MlstmShape s, uint head, uint c) { return head * s.NS + c - s.FIRST; }

// The first position of the segment, and how many positions it has.
inline uint mlstm_start(MlstmShape s) { return s.FIRST * s.L; }
inline uint mlstm_length(MlstmShape s) { return min(s.S, (s.FIRST + s.NS) * s.L) - mlstm_start(s); }

// Row of a (B, SS, NH, ...) array of the segment's positions, for position t of the sequence.
inline uint mlstm_segment_row(MlstmShape s, uint head, uint t) {
  return (head / s.NH * mlstm_length(s) + t - mlstm_start(s)) * s.NH + head % s.NH;
}

// The first position of a chunk that is of a document: `since` is 1 + the position where it starts, 0 if it started
// before the chunk. Two positions are of one document where their `since` are equal.
inline uint mlstm_first(int since) { return since == 0 ? 0 : uint(since - 1); }

// DK^-1/2, the scale of every product of a query and a key.
inline float mlstm_scale(MlstmShape s) { return precise::rsqrt(float(s.DK)); }

}  // namespace mlxhog
