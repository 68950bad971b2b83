// One token of a model for a few sequences: embedding, every block in its recurrent form, logits.
//
// The equations are those of models/mad/layers/xlstm.py; this computes them without a
// framework, whose overhead per operation would be most of the time of a small model. Parameters are read where they
// lie.
#pragma once

#include <cstdint>
#include <vector>

#include "activation.h"

namespace mlxhog {

// The bias is null where the model has none, the weight where it has no such layer.
struct DecodeLayer {
  const float *weight = nullptr, *bias = nullptr;
};

enum class BlockKind { large, mlstm, slstm };  // of xLSTM Large; of the original stack

// The layers of each kind, in this order. In kRecurrent R is the weight and b the bias; gates stand by what they drive,
// whatever their names.
enum LargeLayer { kNormMlstm, kQ, kK, kV, kOgate, kIgate, kFgate, kHeadNorm, kOutProj, kNormFfn, kGate, kUp, kDown };
enum MlstmLayer { kMNorm, kMUp, kMConv, kMQ, kMK, kMV, kMIgate, kMFgate, kMOutNorm, kMSkip, kMDown };
enum SlstmLayer {
  kSNorm, kSConv, kSIgate, kSFgate, kSZgate, kSOgate, kSRecurrent, kSGroupNorm, kSFfnNorm, kSFfnUp, kSFfnDown
};

struct DecodeBlock {
  BlockKind kind;
  Index heads, DK, DV;  // of an sLSTM cell DK is the width of a head
  Index width, taps;    // of the convolution; 0 taps are none
  Index part, U;        // rows of a block of the mLSTM's block-diagonal maps; width of the feed-forward part
  std::vector<DecodeLayer> layers;

  // Floats of a sequence's state: the last inputs of the convolution (taps - 1, width), then C (heads, DK, DV),
  // n (heads, DK) and m (heads), or h, c, n and m (width) of an sLSTM cell.
  Index convolved() const { return taps ? (taps - 1) * width : 0; }
  Index state() const { return convolved() + (kind == BlockKind::slstm ? 4 * width : heads * (DK * DV + DK + 1)); }
};

struct DecodeModel {
  Index d, V;
  bool rms;  // RMSNorm with weights w as they are, in place of LayerNorm with 1 + w
  float norm_eps, cell_eps, gate_cap, logit_cap;  // logit_cap 0 is no cap
  Activation activation;                          // of the sLSTM's feed-forward part
  std::int32_t reset_token;                       // where the memory begins anew; -1 is nowhere
  const float *embedding, *head;                  // (V, d)
  DecodeLayer out_norm;
  std::vector<DecodeBlock> blocks;

  Index state() const;
};

// Reads token[r] in [0, V) of every sequence r after the states `before`, and writes the states after it, in memory of
// their own, and the logits (rows, V). added (rows, d), if not null, is added to the embedded tokens. A sequence's
// states lie block by block. No row depends on another, to the bit.
void decode_step(const DecodeModel&, Index rows, const std::int32_t* tokens, const float* added, const float* before,
                 float* after, float* logits, int threads);

}  // namespace mlxhog
