"""Options of layers, with the names of the xlstm package, and the stacks that they describe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from mlxhog.errors import ConfigError
from mlxhog.models.ops.kernels import CHOICES
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from mlxhog.nn.layers import Cell, Stack

OF_LSTM = {
    "bidirectional": (("False",), "two layers in Bidirectional(there, back) read both ways"),
    "proj_size": (("0",), "add a linear layer behind it"),
    "device": (("None", "cpu"), "call .to(device) of the module"),
    "dtype": (
        ("None", "torch.float32", "mlx.core.float32"),
        "these layers compute in float32, also under torch.autocast",
    ),
    "bias": (("True",), "the cell of an sLSTM always has a bias"),
}
"""Arguments of `nn.LSTM`: the values that change nothing here, and the replacement of others."""


class SLSTMOptions(TypedDict, total=False):
    """Fields of the package's sLSTMLayerConfig; `conv1d_kernel_size` 0 is no convolution."""

    num_heads: int
    conv1d_kernel_size: int
    bias_init: str
    recurrent_weight_init: str
    group_norm_weight: bool


class MLSTMOptions(TypedDict, total=False):
    """Fields of the package's two mLSTMLayerConfigs; `chunk_size` changes only the speed."""

    num_heads: int
    chunk_size: int
    # of the variant "v1"
    conv1d_kernel_size: int
    qkv_proj_blocksize: int
    proj_factor: float
    round_proj_up_dim_up: bool
    round_proj_up_to_multiple_of: int
    bias: bool
    # of the variant "large"
    use_bias: bool
    qk_dim_factor: float
    v_dim_factor: float
    gate_soft_cap: float
    norm_eps: float
    eps: float


class BlockOptions(SLSTMOptions, MLSTMOptions, total=False):
    """Options of the layer in a block and of the feed-forward layer behind it.

    `feedforward` has the fields of the package's FeedForwardConfig, for an sLSTM block of "v1";
    None leaves that layer out. The last two are of "large".
    """

    feedforward: Mapping[str, Any] | None
    ffn_proj_factor: float
    ffn_round_up_to_multiple_of: int


@dataclass(frozen=True, kw_only=True)
class Common:
    """Arguments of all modules."""

    batch_first: bool
    dropout: float
    kernels: str


def slstm_stack(
    input_size: int, hidden_size: int, num_layers: int, common: Common, options: Mapping[str, Any]
) -> Stack:
    """Return sLSTM layers; arguments as those of `mlxhog.nn.torch.SLSTM`."""
    options = _without_lstms(options)
    cfg = _v1("slstm", hidden_size, num_layers, common.dropout, {**options, "feedforward": None})
    return _stack(cfg, "slstm", range(num_layers), input_size, common)


def mlstm_stack(
    input_size: int,
    hidden_size: int,
    num_layers: int,
    variant: str,
    common: Common,
    options: Mapping[str, Any],
) -> Stack:
    """Return mLSTM layers; arguments as those of `mlxhog.nn.torch.MLSTM`."""
    options = _without_lstms(options, but=("bias",))
    cfg = _config("mlstm", variant, hidden_size, num_layers, common.dropout, options)
    return _stack(cfg, "mlstm", range(num_layers), input_size, common)


def block_stack(
    hidden_size: int,
    cell: str,
    variant: str,
    index: int,
    of: int,
    common: Common,
    options: Mapping[str, Any],
) -> Stack:
    """Return a block of a model; arguments as those of `mlxhog.nn.torch.XLSTMBlock`."""
    if cell not in ("mlstm", "slstm"):
        raise ConfigError(f"cell is {cell!r}; choose mlstm or slstm")
    if not 0 <= index < of:
        raise ConfigError(f"block {index} of {of} does not exist; count blocks from 0")
    options = _without_lstms(options, but=("bias",))
    cfg = _config(cell, variant, hidden_size, of, common.dropout, options)
    which: Cell = "mlstm" if cell == "mlstm" else "slstm"
    return _stack(cfg, which, (index,), hidden_size, common, whole_blocks=True)


def _stack(
    cfg: XLSTMV1Config | XLSTMLargeConfig,
    cell: Cell,
    blocks: Sequence[int],
    input_size: int,
    common: Common,
    *,
    whole_blocks: bool = False,
) -> Stack:
    if input_size < 1:
        raise ConfigError(f"input_size is {input_size}; set it to the width of the input")
    if common.kernels not in CHOICES:
        raise ConfigError(f"kernels is {common.kernels!r}; choose one of {', '.join(CHOICES)}")
    if cfg.extra:
        names = [_plain(name) for name in _leaves(cfg.extra)]
        raise ConfigError(f"{', '.join(names)}: no effect here; leave it out")
    return Stack(
        cfg=cfg,
        cell=cell,
        blocks=tuple(blocks),
        whole_blocks=whole_blocks,
        input_size=input_size,
        batch_first=common.batch_first,
        kernels=common.kernels,
    )


def _config(
    cell: str,
    variant: str,
    d: int,
    num_blocks: int,
    dropout: float,
    options: Mapping[str, Any],
) -> XLSTMV1Config | XLSTMLargeConfig:
    if variant == "v1":
        return _v1(cell, d, num_blocks, dropout, options)
    if variant != "large":
        raise ConfigError(
            f"variant is {variant!r}; choose v1, as in the first paper, or large, as in xLSTM-7B"
        )
    if cell == "slstm":
        raise ConfigError("cell is 'slstm', but xLSTM Large has only mLSTM blocks; use variant v1")
    if dropout:
        raise ConfigError(
            f"dropout is {dropout}, but xLSTM Large has no dropout; use variant v1, or a dropout "
            "module of the framework behind it"
        )
    sizes = {"vocab_size": 1, "hidden_size": d, "num_hidden_layers": num_blocks, "num_heads": 4}
    try:
        return XLSTMLargeConfig.from_dict(sizes | dict(options), strict=True)
    except ConfigError as error:
        raise ConfigError(_plain(str(error))) from None


def _v1(
    cell: str, d: int, num_blocks: int, dropout: float, options: Mapping[str, Any]
) -> XLSTMV1Config:
    model = {key: options[key] for key in ("bias", "chunk_size") if key in options}
    layer = {key: value for key, value in options.items() if key not in (*model, "feedforward")}
    block: dict[str, Any] = {cell: layer}
    if cell == "slstm":
        ffn = options.get("feedforward", {})
        block["feedforward"] = None if ffn is None else {"dropout": dropout, **ffn}
    elif "feedforward" in options:
        raise ConfigError(
            "feedforward: an mLSTM block of variant v1 has none; leave it out, or use variant large"
        )
    data = {
        "vocab_size": 1,
        "embedding_dim": d,
        "num_blocks": num_blocks,
        "dropout": dropout,
        "slstm_at": [*range(num_blocks)] if cell == "slstm" else [],
        f"{cell}_block": block,
    }
    try:
        return XLSTMV1Config.from_dict(data | model, strict=True)
    except ConfigError as error:
        raise ConfigError(_plain(str(error))) from None


def _without_lstms(options: Mapping[str, Any], but: Sequence[str] = ()) -> dict[str, Any]:
    """Return the options without the arguments of nn.LSTM, which must have no effect here."""
    others = dict(options)
    for name, (harmless, instead) in OF_LSTM.items():
        if name not in options or name in but:
            continue
        value = others.pop(name)
        if str(value) not in harmless:
            raise ConfigError(
                f"{name} is {value!r}, an argument of nn.LSTM that has no effect here; leave it "
                f"out: {instead}"
            )
    return others


_SECTION = re.compile(r"\b[ms]lstm_block\.(?:[ms]lstm\.)?")
_WORDS = {
    "embedding_dim": "hidden_size",
    "num_blocks": "num_layers",
    "num_hidden_layers": "num_layers",
    "architecture field": "option",
}


def _plain(message: str) -> str:
    """Return a message on a model's configuration with the names of a layer's arguments."""
    for word, ours in _WORDS.items():
        message = message.replace(word, ours)
    return _SECTION.sub("", message)


def _leaves(tree: Mapping[str, Any]) -> list[str]:
    """Return the names of the leaves in a tree of mappings."""
    return [
        name
        for key, value in tree.items()
        for name in (_leaves(value) if isinstance(value, Mapping) else [key])
    ]
