"""The original xLSTM stack: mLSTM blocks and sLSTM blocks, their equations and parameters.

With B batch, S sequence, d = embedding_dim, V vocabulary, K taps of a convolution, LN and LN_head
the layer norm over d and within each head, with eps 1e-5 and the scale 1 + weight:

    x = E[tokens]                                              (B, S, d)
    mLSTM block, of inner width I and NH heads of DK = DV = I / NH:
        u = LN(x)
        [a; z] = Wup u                                         (B, S, I) each
        c = silu(conv(a))
        q = BDq c,  k = BDk c,  v = BDv a                      block-diagonal; v reads a, not c
        i = Wi [q; k; v] + bi,  f = Wf [q; k; v] + bf          (B, S, NH), without a cap
        h = LN_head(mLSTM(q, k, v, i, f))
        x = x + Wdown( (h + skip * c) * silu(z) )
    sLSTM block, of NH heads of DH = d / NH:
        u = LN(x)
        c = silu(conv(u))                                      u itself where K = 0
        x = x + LN_head(sLSTM(BDi c, BDf c, BDz u, BDo u))
        [g; p] = Wup LN(x)                                     where there is a feed-forward layer,
        x = x + Wdown( act(g) * p )                            of width U
    logits = LN(x) H^T                                         H = E where the weights are tied

conv is causal and depthwise: y[t] = b + sum_j w[j] * x[t - (K-1) + j]. A block-diagonal map has one
small matrix per group of neighbouring channels: heads of the sLSTM, qkv_proj_blocksize channels
of the mLSTM.

The mLSTM cell is that of `models/xlstm_large/__init__.py`, with eps 1e-6. The sLSTM cell of one
head, with the state h, c, n, m (DH each), zero at the start:

    i~ = Gi + Ri h + bi,  and so f~, z~, o~
    m' = max(i~, logsig(f~) + m), or i~ where n is 0           I = exp(i~ - m')
    F = exp(logsig(f~) + m - m')
    c = F c + I tanh(z~)     n = F n + I     m = m'     h = sigmoid(o~) c / n

Names and layouts of parameters are those of the xlstm package on the CPU. There the map stored as
`fgate` drives the input gate of an sLSTM, BDi, and the one stored as `igate` its forget gate, BDf
(NX-AI/xlstm issue 98); the cell's own R and b have the rows i, f, z, o as they should.

Dropout, while training: on E[tokens] if so configured, on the result of each mLSTM layer and of
each feed-forward layer, and on the h of each sLSTM before its norm.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517, and the package xlstm 2.0.6 (NX-AI/xlstm).
"""

from typing import Literal

from mlxhog.models.spec import ParamSpec
from mlxhog.models.xlstm_v1.block_spec import block_spec, embedding_std, normal
from mlxhog.models.xlstm_v1.config import XLSTMV1Config

__all__ = ["XLSTMV1Config", "block_name", "dropout_sites", "param_count", "param_spec"]

EMBEDDING = "token_embedding.weight"
LM_HEAD = "lm_head"
OUT_NORM = "xlstm_block_stack.post_blocks_norm"

NORM_EPS = 1e-5
CELL_EPS = 1e-6


def block_name(layer: int) -> str:
    """Prefix of the parameters of block `layer`, counted from 0."""
    return f"xlstm_block_stack.blocks.{layer}"


def param_spec(cfg: XLSTMV1Config) -> dict[str, ParamSpec]:
    """Declare every parameter of the model, in the order in which the model uses them.

    Args:
        cfg: the model.

    Returns:
        Name -> spec. Those called "weight" decay, unless they belong to a norm or to the embedding
        of a model without `weight_decay_on_embedding`.
    """
    shape = (cfg.vocab_size, cfg.embedding_dim)
    small = normal(embedding_std(cfg))
    kind: Literal["dense", "rows"] = "dense" if cfg.tie_weights else "rows"
    specs = [ParamSpec(EMBEDDING, shape, small, kind, cfg.weight_decay_on_embedding)]
    for layer in range(cfg.num_blocks):
        specs += block_spec(cfg, layer, block_name(layer))
    if cfg.add_post_blocks_norm:
        specs.append(ParamSpec(f"{OUT_NORM}.weight", (cfg.embedding_dim,), "zeros"))
    if not cfg.tie_weights:
        specs.append(ParamSpec(f"{LM_HEAD}.weight", shape, small, decay=True, product=True))
    return {spec.name: spec for spec in specs}


def param_count(cfg: XLSTMV1Config) -> int:
    """Number of elements of all parameters, found by listing one block of each kind."""
    count = cfg.vocab_size * cfg.embedding_dim * (1 if cfg.tie_weights else 2)
    count += cfg.embedding_dim if cfg.add_post_blocks_norm else 0
    slstm = len(cfg.slstm_at)
    for layers, blocks in ((cfg.slstm_at, slstm), (cfg.mlstm_at, cfg.num_blocks - slstm)):
        if blocks:
            count += blocks * sum(spec.size for spec in block_spec(cfg, layers[0], ""))
    return count


def dropout_sites(cfg: XLSTMV1Config) -> dict[str, tuple[int, float]]:
    """Name -> (width, rate) of every place that drops units, but for those with the rate 0."""
    sites = {EMBEDDING: cfg.dropout} if cfg.add_embedding_dropout else {}
    for layer in range(cfg.num_blocks):
        sites[f"{block_name(layer)}.xlstm"] = cfg.dropout
        if layer in cfg.slstm_at and cfg.feedforward is not None:
            sites[f"{block_name(layer)}.ffn"] = cfg.feedforward.dropout
    return {name: (cfg.embedding_dim, rate) for name, rate in sites.items() if rate}
