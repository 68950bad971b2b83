// One token of the original xLSTM stack for a few sequences: embedding, mLSTM and sLSTM blocks, logits.
//
// The equations are those of models/xlstm_v1/model.py; see decode_large.h for why. Parameters are read where they lie.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "activation.h"
#include "decode_large.h"
#include "simd.h"

namespace mlxhog {

// The layers of each kind of block, in this order. Norms are stored as w and scale by 1 + w. kRecurrent holds R and,
// as its bias, b; the gates stand by what they drive, whatever their names. A layer without weights is not there.
enum V1MlstmLayer : std::size_t {
  kMNorm, kMUp, kMConv, kMQ, kMK, kMV, kMIgate, kMFgate, kMOutNorm, kMSkip, kMDown, kMLayers
};
enum V1SlstmLayer : std::size_t {
  kSNorm, kSConv, kSIgate, kSFgate, kSZgate, kSOgate, kSRecurrent, kSGroupNorm, kSFfnNorm, kSFfnUp, kSFfnDown, kSLayers
};
static_assert(std::size_t{kMLayers} == std::size_t{kSLayers});

struct V1Block {
  bool slstm;
  std::array<DecodeLayer, kMLayers> layers;
};

struct V1Model {
  Index d, V;
  Index I, m_heads, m_K, groups;  // of mLSTM layers: inner width, heads, taps, blocks of the projections
  Index s_heads, s_K, U;          // of sLSTM layers: heads, taps (0: no convolution), feed-forward width
  Activation activation;
  float norm_eps, cell_eps;
  std::int32_t reset_token;  // where the memory begins anew; -1 is nowhere
  const float* embedding;    // (V, d)
  std::vector<V1Block> blocks;
  const float* out_norm;  // null: none
  const float* head;      // (V, d)

  // Floats of a block's state, of one sequence: the last inputs of the convolution (K - 1, width), then C, n, m of
  // an mLSTM cell or h, c, n, m (d each) of an sLSTM cell.
  Index block_state(const V1Block& b) const {
    const Index DK = m_heads ? I / m_heads : 0;
    if (!b.slstm) return (m_K - 1) * I + m_heads * (DK * DK + DK + 1);
    return (s_K ? (s_K - 1) * d : 0) + 4 * d;
  }
};

// As decode_step in decode_large.h; but `after` must not be `before`.
void decode_v1_step(const V1Model&, Index rows, const std::int32_t* tokens, const float* added, const float* before,
                    float* after, float* logits, int threads);

}  // namespace mlxhog
