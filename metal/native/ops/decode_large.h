// One token of xLSTM Large for a few sequences: embedding, every block in its recurrent form, logits.
//
// The equations are those of models/xlstm_large/model.py; this computes them without a framework, whose
// overhead per operation would be most of the time of a small model. Parameters are read where they lie.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "simd.h"

namespace mlxhog {

// A weight and its bias; the bias is null where the model has none, the weight where it has no such layer.
struct DecodeLayer {
  const float *weight = nullptr, *bias = nullptr;
};

// The layers of one block, in the order of the model's parameters.
enum BlockLayer : std::size_t {
  kNormMlstm, kQ, kK, kV, kOgate, kIgate, kFgate, kHeadNorm, kOutProj, kNormFfn, kGate, kUp, kDown, kBlockLayers
};

struct DecodeModel {
  Index d, heads, DK, DV, U, V;
  float norm_eps, eps, gate_cap, logit_cap;  // logit_cap 0 is no cap
  std::int32_t reset_token;                  // where the memory begins anew; -1 is nowhere
  const float* embedding;                    // (V, d)
  std::vector<std::array<DecodeLayer, kBlockLayers>> blocks;
  DecodeLayer out_norm;
  const float* head;  // (V, d)

  // Floats of a block's state, of one sequence: C (heads, DK, DV), n (heads, DK), m (heads), one after another.
  Index block_state() const { return heads * (DK * DV + DK + 1); }
};

// Reads token[r] in [0, V) of every sequence r after the states `before`, and writes the states after it and the
// logits (rows, V). added (rows, d), if not null, is added to the embedded tokens. A sequence's states lie block by block, `block_state` floats each. `after` may be `before`.
// No row depends on another, to the bit.
void decode_step(const DecodeModel&, Index rows, const std::int32_t* tokens, const float* added, const float* before,
                 float* after, float* logits, int threads);

}  // namespace mlxhog
