"""Names, shapes and initial values of the parameters of one mLSTM or sLSTM block.

"Small" normals have the std sqrt(2 / 5d), those into the residual stream 2 / (blocks * sqrt(d)),
with d the model's width in every case, as in the xlstm package.
"""

import math
from collections.abc import Iterator

from mlxhog.models.spec import ParamSpec
from mlxhog.models.xlstm_v1.config import XLSTMV1Config


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
