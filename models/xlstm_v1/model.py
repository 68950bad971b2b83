"""The original xLSTM stack of mLSTM and sLSTM blocks: its equations, parameters and forward pass.

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

The mLSTM cell is that of `models/xlstm_large/model.py`, with eps 1e-6. The sLSTM cell of one
head, with the state h, c, n, m (DH each), zero at the start:

    i~ = Gi + Ri h + bi,  and so f~, z~, o~
    m' = max(i~, logsig(f~) + m), or i~ where n is 0           I = exp(i~ - m')
    F = exp(logsig(f~) + m - m')
    c = F c + I tanh(z~)     n = F n + I     m = m'     h = sigmoid(o~) c / n

Names and layouts of parameters are those of the xlstm package on the CPU. There the map stored as
`fgate` drives the input gate of an sLSTM, BDi, and the one stored as `igate` its forget gate, BDf
(NX-AI/xlstm issue 98); the cell's own R and b have the rows i, f, z, o as they should.

"Small" initial normals have the std sqrt(2 / 5d), those into the residual stream
2 / (blocks * sqrt(d)), with d the model's width in every case, as in the xlstm package.

Dropout, while training: on E[tokens] if so configured, on the result of each mLSTM layer and of
each feed-forward layer, and on the h of each sLSTM before its norm.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517, and the package xlstm 2.0.6 (NX-AI/xlstm).

`params` maps every name of `param_spec(cfg)` to a float32 array of that shape. All functions are
pure: they write no input.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from mlxhog.models import ngrams
from mlxhog.models.forward_pass import CLOSED_GATE, Pass
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.spec import ParamSpec
from mlxhog.models.xlstm_v1.config import XLSTMV1Config

EMBEDDING = "token_embedding.weight"
LM_HEAD = "lm_head"
OUT_NORM = "xlstm_block_stack.post_blocks_norm"

NORM_EPS = 1e-5
CELL_EPS = 1e-6

Params = Mapping[str, Array]
State = tuple[Array, ...]
"""Of one block, float32. mLSTM: the last inputs of the convolution (B, K - 1, I), and C
(B, NH, DK, DV), n (B, NH, DK), m (B, NH) of the cell. sLSTM: the last inputs of the convolution
(B, K - 1, d), where there is one, and h, c, n, m of the cell, (B, NH, DH) each."""


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
    specs += ngrams.weight_specs(cfg)
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
    count += sum(spec.size for spec in ngrams.weight_specs(cfg))
    slstm = len(cfg.slstm_at)
    for layers, blocks in ((cfg.slstm_at, slstm), (cfg.mlstm_at, cfg.num_blocks - slstm)):
        if blocks:
            count += blocks * sum(spec.size for spec in block_spec(cfg, layers[0], ""))
    return count


def block_spec(cfg: XLSTMV1Config, layer: int, p: str) -> Iterator[ParamSpec]:
    """Declare the parameters of block `layer`, named from the prefix `p`."""
    yield _norm(f"{p}.xlstm_norm", cfg.embedding_dim)
    if layer not in cfg.slstm_at:
        yield from _mlstm_layer(cfg, f"{p}.xlstm")
        return
    yield from _slstm_layer(cfg, layer, f"{p}.xlstm")
    if cfg.feedforward is not None:
        d, U, bias = cfg.embedding_dim, cfg.ffn_dim, cfg.feedforward.bias
        yield _norm(f"{p}.ffn_norm", d)
        yield from _linear(f"{p}.ffn.proj_up", (2 * U, d), embedding_std(cfg), bias)
        yield from _linear(f"{p}.ffn.proj_down", (d, U), _residual_std(cfg), bias)


def normal(std: float) -> str:
    """Return the initialiser of that standard deviation."""
    return f"normal:{std!r}"


def embedding_std(cfg: XLSTMV1Config) -> float:
    """Standard deviation of the embedding and of every map that is not into the residual stream."""
    return math.sqrt(2 / (5 * cfg.embedding_dim))


def _residual_std(cfg: XLSTMV1Config) -> float:
    return 2 / cfg.num_blocks / math.sqrt(cfg.embedding_dim)


def _mlstm_layer(cfg: XLSTMV1Config, p: str) -> Iterator[ParamSpec]:
    layer, d, I = cfg.mlstm_layer, cfg.embedding_dim, cfg.inner_dim  # noqa: E741  the spec's letter
    NH, small = layer.num_heads, embedding_std(cfg)
    groups = I // layer.qkv_proj_blocksize
    yield from _linear(f"{p}.proj_up", (2 * I, d), small, cfg.bias)
    yield from _conv(f"{p}.conv1d.conv", I, layer.conv1d_kernel_size)
    for name in ("q_proj", "k_proj", "v_proj"):
        yield from _block_diagonal(f"{p}.{name}", I, groups, small, cfg.bias, product=True)
    for name, bias in (("igate", normal(0.1)), ("fgate", "linspace:3.0:6.0")):
        yield ParamSpec(f"{p}.mlstm_cell.{name}.weight", (NH, 3 * I), "zeros", decay=True)
        yield ParamSpec(f"{p}.mlstm_cell.{name}.bias", (NH,), bias)
    yield _norm(f"{p}.mlstm_cell.outnorm", I)
    yield ParamSpec(f"{p}.learnable_skip", (I,), "ones")
    yield from _linear(f"{p}.proj_down", (d, I), _residual_std(cfg), cfg.bias)


def _slstm_layer(cfg: XLSTMV1Config, layer: int, p: str) -> Iterator[ParamSpec]:
    slstm, d = cfg.slstm_layer, cfg.embedding_dim
    NH, DH = slstm.num_heads, d // slstm.num_heads
    if slstm.conv1d_kernel_size:
        yield from _conv(f"{p}.conv1d.conv", d, slstm.conv1d_kernel_size)
    for name in ("fgate", "igate", "zgate", "ogate"):
        yield from _block_diagonal(f"{p}.{name}", d, NH, embedding_std(cfg), False, product=False)
    wide = f"uniform:{1 / math.sqrt(d)!r}"
    r = wide if slstm.recurrent_weight_init == "standard" else "zeros"
    depth = layer / (cfg.num_blocks - 1) if cfg.num_blocks > 1 else 0.0
    b = {
        "powerlaw_blockdependent": f"slstm_powerlaw:{NH}:{0.3 + 1.3 * depth!r}",
        "small_init": f"slstm_linspace:{NH}:3.0:6.0",
        "standard": wide,
        "zeros": "zeros",
    }[slstm.bias_init]
    yield ParamSpec(f"{p}.slstm_cell._recurrent_kernel_", (NH, 4 * DH, DH), r)
    yield ParamSpec(f"{p}.slstm_cell._bias_", (4 * d,), b)
    if slstm.group_norm_weight:
        yield _norm(f"{p}.group_norm", d)


def _norm(name: str, width: int) -> ParamSpec:
    """The scale of a norm is 1 + weight."""
    return ParamSpec(f"{name}.weight", (width,), "zeros")


def _linear(name: str, shape: tuple[int, int], std: float, bias: bool) -> Iterator[ParamSpec]:
    yield ParamSpec(f"{name}.weight", shape, normal(std), decay=True, product=True)
    if bias:
        yield ParamSpec(f"{name}.bias", shape[:1], "zeros")


def _block_diagonal(
    name: str, width: int, groups: int, std: float, bias: bool, *, product: bool
) -> Iterator[ParamSpec]:
    shape = (groups, width // groups, width // groups)
    yield ParamSpec(f"{name}.weight", shape, normal(std), decay=True, product=product)
    if bias:
        yield ParamSpec(f"{name}.bias", (width,), "zeros")


def _conv(name: str, channels: int, K: int) -> Iterator[ParamSpec]:
    bound = f"uniform:{1 / math.sqrt(K)!r}"
    yield ParamSpec(f"{name}.weight", (channels, 1, K), bound, decay=True)
    yield ParamSpec(f"{name}.bias", (channels,), bound)


def dropout_sites(cfg: XLSTMV1Config) -> dict[str, tuple[int, float]]:
    """Name -> (width, rate) of every place that drops units, but for those with the rate 0."""
    sites = {EMBEDDING: cfg.dropout} if cfg.add_embedding_dropout else {}
    for layer in range(cfg.num_blocks):
        sites[f"{block_name(layer)}.xlstm"] = cfg.dropout
        if layer in cfg.slstm_at and cfg.feedforward is not None:
            sites[f"{block_name(layer)}.ffn"] = cfg.feedforward.dropout
    return {name: (cfg.embedding_dim, rate) for name, rate in sites.items() if rate}


def state_shapes(cfg: XLSTMV1Config) -> list[tuple[tuple[int, ...], ...]]:
    """Shapes of the parts of every block's `State`, for one sequence."""
    shapes: list[tuple[tuple[int, ...], ...]] = []
    for layer in range(cfg.num_blocks):
        if layer in cfg.slstm_at:
            slstm, d = cfg.slstm_layer, cfg.embedding_dim
            K, cell = slstm.conv1d_kernel_size, (slstm.num_heads, d // slstm.num_heads)
            shapes.append((*([(K - 1, d)] if K else []), *[cell] * 4))
        else:
            mlstm, I = cfg.mlstm_layer, cfg.inner_dim  # noqa: E741  the spec's letter
            NH, DK = mlstm.num_heads, I // mlstm.num_heads
            shapes.append(((mlstm.conv1d_kernel_size - 1, I), (NH, DK, DK), (NH, DK), (NH,)))
    return shapes


def init_state(cfg: XLSTMV1Config, B: int, xp: Arrays[Array]) -> list[State]:
    """Return the state before the first token of B sequences: zeros, one tuple per block."""
    return [tuple(xp.zeros((B, *shape)) for shape in shapes) for shapes in state_shapes(cfg)]


def blocks(
    cfg: XLSTMV1Config,
    params: Params,
    x: Array,
    state: Sequence[State] | None,
    run: Pass[Array],
) -> tuple[Array, list[State]]:
    """From the embedded tokens (B, S, d) to the final norm, and the state after the last."""
    x = drop(EMBEDDING, x, run)
    new_state = []
    for layer in range(cfg.num_blocks):
        block = slstm_block if layer in cfg.slstm_at else mlstm_block
        layer_state = state[layer] if state else None
        x, layer_state = block(cfg, params, block_name(layer), x, layer_state, run)
        new_state.append(layer_state)
        run.note(x)
    if cfg.add_post_blocks_norm:
        x = norm(params, OUT_NORM, x, run)
        run.note(x)
    return x, new_state


def mlstm_block(
    cfg: XLSTMV1Config, params: Params, p: str, x: Array, state: State | None, run: Pass[Array]
) -> tuple[Array, State]:
    """The block with the prefix `p`: the mLSTM layer, normed and added to x (B, S, d)."""
    u = norm(params, f"{p}.xlstm_norm", x, run)
    y, state = mlstm_layer(cfg, params, f"{p}.xlstm", u, state, run)
    return x + y, state


def mlstm_layer(
    cfg: XLSTMV1Config, params: Params, p: str, u: Array, state: State | None, run: Pass[Array]
) -> tuple[Array, State]:
    """The cell between its projections, convolution and gate; u and result (B, S, d)."""
    heads = (*u.shape[:2], cfg.mlstm_layer.num_heads, -1)
    a, z = halves(params, f"{p}.proj_up", u, run)
    c, inputs = conv(params, p, a, None if state is None else state[0], run)
    q, k = block_diagonals(params, (f"{p}.q_proj", f"{p}.k_proj"), c, run)
    (v,) = block_diagonals(params, (f"{p}.v_proj",), a, run)
    gates = (f"{p}.mlstm_cell.igate", f"{p}.mlstm_cell.fgate")
    i, f = linears(params, gates, run.ops.xp.concatenate([q, k, v], -1), run)
    if run.starts is not None:
        f = run.ops.xp.where(run.starts[..., None], CLOSED_GATE, f)
    q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
    cell = None if state is None else state[1:]
    h, cell = run.ops.mlstm_cell(q, k, v, i, f, chunk_size=cfg.chunk_size, eps=CELL_EPS, state=cell)
    w, skip = 1.0 + params[f"{p}.mlstm_cell.outnorm.weight"], params[f"{p}.learnable_skip"]
    y = run.ops.head_norm_skip_gate(h, c, z, w, skip, NORM_EPS)
    (y,) = linears(params, (f"{p}.proj_down",), y, run)
    return drop(p, y, run), (inputs, *cell)


def slstm_block(
    cfg: XLSTMV1Config, params: Params, p: str, x: Array, state: State | None, run: Pass[Array]
) -> tuple[Array, State]:
    """The block with the prefix `p`: the sLSTM layer and the feed-forward layer, if it has one."""
    u = norm(params, f"{p}.xlstm_norm", x, run)
    y, state = slstm_layer(cfg, params, f"{p}.xlstm", u, state, run)
    x = x + y
    if cfg.feedforward is not None:
        x = x + ffn(cfg, params, f"{p}.ffn", norm(params, f"{p}.ffn_norm", x, run), run)
    return x, state


def slstm_layer(
    cfg: XLSTMV1Config, params: Params, p: str, u: Array, state: State | None, run: Pass[Array]
) -> tuple[Array, State]:
    """The cell between its convolution, gates and head norm; u and result (B, S, d)."""
    heads = (*u.shape[:2], cfg.slstm_layer.num_heads, -1)
    c, inputs = u, list[Array]()
    if cfg.slstm_layer.conv1d_kernel_size:
        c, last = conv(params, p, u, None if state is None else state[0], run)
        inputs.append(last)
    # The names of these two gates are swapped in the package, see above.
    i, f = block_diagonals(params, (f"{p}.fgate", f"{p}.igate"), c, run)
    z, o = block_diagonals(params, (f"{p}.zgate", f"{p}.ogate"), u, run)
    i, f, z, o = i.reshape(heads), f.reshape(heads), z.reshape(heads), o.reshape(heads)
    R, b = params[f"{p}.slstm_cell._recurrent_kernel_"], params[f"{p}.slstm_cell._bias_"]
    cell = None if state is None else state[-4:]
    h, cell = run.ops.slstm_cell(i, f, z, o, R, b, state=cell, starts=run.starts)
    w = params.get(f"{p}.group_norm.weight")
    scale = run.ops.xp.ones_like(u[0, 0]) if w is None else 1.0 + w
    return run.ops.head_norm(drop(p, run.ops.xp.astype(h, u), run), scale, NORM_EPS), (
        *inputs,
        *cell,
    )


def norm(params: Params, name: str, x: Array, run: Pass[Array]) -> Array:
    """LayerNorm with the scale 1 + `name`; (..., d)."""
    return run.ops.layer_norm(x, 1.0 + params[f"{name}.weight"], NORM_EPS)


def linears(params: Params, names: Sequence[str], x: Array, run: Pass[Array]) -> tuple[Array, ...]:
    """The linear maps `names` of one x, with their biases where they have any; (..., out) each."""
    weights = [params[f"{name}.weight"] for name in names]
    return run.ops.linears(x, weights, [params.get(f"{name}.bias") for name in names])


def halves(params: Params, name: str, x: Array, run: Pass[Array]) -> tuple[Array, Array]:
    """The first and the second half of the linear map `name`, as two arrays."""
    w, b = params[f"{name}.weight"], params.get(f"{name}.bias")
    halves = run.ops.xp.halves
    first, second = run.ops.linears(x, halves(w), None if b is None else halves(b))
    return first, second


def block_diagonals(
    params: Params, names: Sequence[str], x: Array, run: Pass[Array]
) -> tuple[Array, ...]:
    """The block-diagonal maps `names` of one x, with their biases where they have any."""
    weights = [params[f"{name}.weight"] for name in names]
    return run.ops.block_diagonal(x, weights, [params.get(f"{name}.bias") for name in names])


def conv(
    params: Params, p: str, x: Array, state: Array | None, run: Pass[Array]
) -> tuple[Array, Array]:
    """The causal convolution of x (B, S, C) through silu, and the inputs the next one needs."""
    w, b = params[f"{p}.conv1d.conv.weight"], params[f"{p}.conv1d.conv.bias"]
    return run.ops.causal_conv(x, w, b, state=state, starts=run.starts, silu=True)


def drop(site: str, x: Array, run: Pass[Array]) -> Array:
    """Dropout at `site`, where this pass has a mask for it."""
    mask = None if run.masks is None else run.masks.get(site)
    return x if mask is None else x * mask.reshape(x.shape)


def ffn(cfg: XLSTMV1Config, params: Params, p: str, u: Array, run: Pass[Array]) -> Array:
    """The gated feed-forward layer; u and result (B, S, d)."""
    assert cfg.feedforward is not None
    gate, up = halves(params, f"{p}.proj_up", u, run)
    y = run.ops.glu(gate, up, cfg.feedforward.act_fn)
    (y,) = linears(params, (f"{p}.proj_down",), y, run)
    return drop(p, y, run)
