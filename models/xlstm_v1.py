"""The stack of the first xLSTM paper: fields, list of layers, names of its checkpoints.

Every block is an mLSTM layer, or an sLSTM layer with or without a feed-forward layer, whose
equations are in `layers/xlstm.py`. Norms are LayerNorm with the scale 1 + weight and eps 1e-5;
the one before the head may be absent. Logits have no cap.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517, and the package xlstm 2.0.6 (NX-AI/xlstm).
"""

import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from mlxhog.base.quantities import parse_count
from mlxhog.config.options import option
from mlxhog.errors import ConfigError, shown
from mlxhog.models import ngrams
from mlxhog.models.fields import MAX_LAYERS, Fields, check_max, custom, positive
from mlxhog.models.layers.feed_forward import FeedForwardV1
from mlxhog.models.layers.layer import Layer
from mlxhog.models.layers.xlstm import MLSTMV1, SLSTMV1, V1_NORM_EPS
from mlxhog.models.model import BlockStack, ResidualBlock, XLSTMConfig
from mlxhog.models.spec import ParamSpec, bound, normal

EMBEDDING = "token_embedding.weight"
OUT_NORM = "xlstm_block_stack.post_blocks_norm"

OURS = ("chunk_size", "bos_token_id", "reset_at_document_boundaries", *ngrams.FIELDS)
"""Fields that the xlstm package does not have."""

BIAS_INIT = {
    "powerlaw_blockdependent": "slstm_powerlaw:{NH}:{exponent!r}",
    "small_init": "slstm_linspace:{NH}:3.0:6.0",
    "standard": "{bound}",
    "zeros": "zeros",
}
"""Initializers of the biases of an sLSTM cell."""

EVERY = (-1,)
"""Stands for the indices of all blocks."""


def _slstm_at(value: object) -> tuple[int, ...]:
    if value == "all":
        return EVERY
    with suppress(ValueError):
        if isinstance(value, list | tuple | range):
            return tuple(sorted(map(parse_count, value)))
    raise ConfigError(f"slstm_at is {shown(value)}; give it a list such as [1], or 'all'")


class _Section(Fields):
    """Fields of a block; widths, bias and dropout are those of the stack."""

    private_prefix = "_"  # derived fields of the package
    ignored = frozenset(  # they choose kernels or dtypes
        "backend batch_size input_shape internal_input_shape output_shape constants dtype dtype_b "
        "dtype_r dtype_w dtype_g dtype_s dtype_a enable_automatic_mixed_precision".split()
    )


@dataclass(frozen=True, kw_only=True)
class MLSTMLayerConfig(_Section):
    """Settings of the mLSTM layer, whose inner width is `proj_factor` times the model's."""

    num_heads: int = positive("heads; they divide the cell's width", 4)
    conv1d_kernel_size: int = positive("kernel size of the convolution before it", 4)
    qkv_proj_blocksize: int = positive("block size of the block-diagonal q, k and v", 4)
    proj_factor: float = positive("width of the cell / hidden_size", 2.0)
    round_proj_up_dim_up: bool = option(True, "round that width up, not down")
    round_proj_up_to_multiple_of: int = positive("to a multiple of it", 64)


@dataclass(frozen=True, kw_only=True)
class SLSTMLayerConfig(_Section):
    """Settings of the sLSTM layer; a kernel size of 0 is no convolution."""

    fixed: ClassVar[Mapping[str, object]] = {  # they change the mathematics
        "function": "slstm", "num_states": 4, "num_gates": 4, "initial_val": 0.0,
        "gradient_recurrent_cut": False, "gradient_recurrent_clipval": None,
        "forward_clipval": None,
    }  # fmt: skip

    num_heads: int = positive("heads; they divide hidden_size", 4)
    conv1d_kernel_size: int = option(4, "kernel size of the convolution before it; 0: none", low=0)
    bias_init: str = option(
        "powerlaw_blockdependent",
        "forget gates: or small_init, standard, zeros",
        choices=tuple(BIAS_INIT),
    )
    recurrent_weight_init: str = option("zeros", "or standard", choices=("zeros", "standard"))
    group_norm_weight: bool = option(True, "the norm of its heads has weights")


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig(_Section):
    """Settings of the gated feed-forward layer of an sLSTM block, with its own bias and dropout."""

    fixed: ClassVar[Mapping[str, object]] = {"ff_type": "ffn_gated"}

    proj_factor: float = positive("its width / hidden_size", 1.3)
    round_proj_up_dim_up: bool = option(True, "round that width up, not down")
    round_proj_up_to_multiple_of: int = positive("to a multiple of it", 64)
    act_fn: str = option(
        "gelu",
        "of its gate: or relu, relu^2, sigmoid, swish, selu",
        choices=("gelu", "relu", "relu^2", "sigmoid", "swish", "selu"),
    )
    dropout: float = option(0.0, "dropout rate", low=0, below=1)
    bias: bool = option(False, "biases in its matrices")


@dataclass(frozen=True, kw_only=True)
class MLSTMBlockConfig(_Section):
    """An mLSTM block: norm, mLSTM layer."""

    mlstm: MLSTMLayerConfig = custom("the mLSTM layer", MLSTMLayerConfig)


@dataclass(frozen=True, kw_only=True)
class SLSTMBlockConfig(_Section):
    """An sLSTM block: norm, sLSTM layer and, unless it is None, norm, feed-forward layer."""

    slstm: SLSTMLayerConfig = custom("the sLSTM layer", SLSTMLayerConfig)
    feedforward: FeedForwardConfig | None = custom(
        "the gated layer after it, or null", FeedForwardConfig
    )


@dataclass(frozen=True, kw_only=True)
class XLSTMV1Config(XLSTMConfig):
    """Sizes and constants of one model, as in the package's xLSTMLMModelConfig.

    Sizes have the names of xLSTM Large, and the package's as aliases. `chunk_size`, resets at
    `bos_token_id` and n-gram tables are fields of this package. `context_length` limits the
    package's sequences, not ours.
    """

    model_type: ClassVar[str] = "xlstm_v1"
    title: ClassVar[str] = "xLSTM of the first paper"
    private_prefix = "_"
    aliases: ClassVar[Mapping[str, str]] = {
        "embedding_dim": "hidden_size",
        "num_blocks": "num_hidden_layers",
        "tie_weights": "tie_word_embeddings",
    }
    ignored = frozenset(  # label files
        "architectures transformers_version dtype torch_dtype eos_token_id pad_token_id".split()
    )
    norm_eps = V1_NORM_EPS

    num_hidden_layers: int = positive("blocks", high=MAX_LAYERS)
    mlstm_block: MLSTMBlockConfig | None = custom("of every block that is not in slstm_at", None)
    slstm_block: SLSTMBlockConfig | None = custom("of the blocks in slstm_at", None)
    slstm_at: tuple[int, ...] = custom("indices of the sLSTM blocks, from 0; or all", (), _slstm_at)
    context_length: int = option(2048, "bound of the xlstm package's sequences, not of ours")
    add_post_blocks_norm: bool = option(True, "a norm before the head")
    bias: bool = option(False, "biases in the matrices")
    dropout: float = option(0.0, "dropout rate", low=0, below=1)
    add_embedding_dropout: bool = option(False, "dropout of the embedding, too")
    tie_word_embeddings: bool = option(False, "the head is the embedding")
    weight_decay_on_embedding: bool = option(False, "weight decay of the embedding, too")
    chunk_size: int = positive("positions an mLSTM computes in parallel", 64)

    def __post_init__(self) -> None:
        """Refuse a model that cannot be built."""
        super().__post_init__()
        n = self.num_hidden_layers
        if self.slstm_at == EVERY or (self.mlstm_block is None and not self.slstm_at):
            object.__setattr__(self, "slstm_at", tuple(range(n)))
        if self.context_length == -1:
            object.__setattr__(self, "context_length", 2048)
        at = self.slstm_at
        if len(set(at)) < len(at):
            raise ConfigError(f"slstm_at is {list(at)}; name every block once")
        if wrong := [block for block in at if not 0 <= block < n]:
            raise ConfigError(
                f"slstm_at names block {wrong[0]}, and the model has blocks 0 to {n - 1}; count "
                "from 0, or raise num_hidden_layers"
            )
        mlstm = [number for number in range(n) if number not in at]
        for name, numbers in (("slstm_block", at), ("mlstm_block", mlstm)):
            if numbers and getattr(self, name) is None:
                raise ConfigError(
                    f"slstm_at is {list(at)} of {n} blocks and there is no {name}; add {name}, or "
                    "change slstm_at: 'all' is every block, [] none"
                )
            for part in self._block(numbers[0]) if numbers else ():
                try:
                    part.layer.check(part.d)
                except ConfigError as error:
                    raise ConfigError(f"{name}: {error}") from error

    @cached_property
    def stack(self) -> BlockStack:
        """The model as a list of layers, without an adapter."""
        out_norm = ParamSpec(f"{OUT_NORM}.weight", (self.hidden_size,), "zeros")
        return BlockStack(
            **self.embedding_and_head(EMBEDDING, decay=self.weight_decay_on_embedding),
            blocks=tuple(self._block(number) for number in range(self.num_hidden_layers)),
            norms=("layer", "zeros", False),
            out_norm=(out_norm,) if self.add_post_blocks_norm else (),
            dropout=self.dropout if self.add_embedding_dropout else 0.0,
        )

    def _block(self, number: int) -> tuple[ResidualBlock, ...]:
        d, n, name = self.hidden_size, self.num_hidden_layers, f"xlstm_block_stack.blocks.{number}"
        residual = normal(2 / n / math.sqrt(d))

        def part(word: str, layer: Layer, dropout: float) -> ResidualBlock:
            own = f"{name}.{word}"
            return ResidualBlock(name=own, norm=f"{own}_norm", layer=layer, d=d, dropout=dropout)

        if number not in self.slstm_at:
            assert self.mlstm_block is not None, "checked when the configuration was made"
            own = self.mlstm_block.mlstm
            mlstm = MLSTMV1(
                heads=own.num_heads,
                conv=own.conv1d_kernel_size,
                qkv_block=own.qkv_proj_blocksize,
                inner=_rounded_width("mlstm_block.mlstm", d, own),
                bias=self.bias,
                residual=residual,
                chunk_size=self.chunk_size,
            )
            return (part("xlstm", mlstm, self.dropout),)
        assert self.slstm_block is not None, "likewise"
        cell, ffn = self.slstm_block.slstm, self.slstm_block.feedforward
        depth = number / (n - 1) if n > 1 else 0.0
        values = {"NH": cell.num_heads, "exponent": 0.3 + 1.3 * depth, "bound": bound(d)}
        slstm = SLSTMV1(
            heads=cell.num_heads,
            conv=cell.conv1d_kernel_size,
            forget=BIAS_INIT[cell.bias_init].format(**values),
            recurrent=bound(d) if cell.recurrent_weight_init == "standard" else "zeros",
            norm_weight=cell.group_norm_weight,
        )
        if ffn is None:
            return (part("xlstm", slstm, self.dropout),)
        width = _rounded_width("slstm_block.feedforward", d, ffn)
        layer = FeedForwardV1(inner=width, act_fn=ffn.act_fn, bias=ffn.bias, residual=residual)
        return part("xlstm", slstm, self.dropout), part("ffn", layer, ffn.dropout)

    def to_dict(self) -> dict[str, Any]:
        """Write the fields of a config.json: the package's own and ours."""
        names = {"architectures": ["xLSTMLMModel"], "model_type": self.model_type}
        ours = {name: value for name, value in self.values().items() if name in OURS}
        unread = {key: value for key, value in self.extra.items() if not key.endswith("_block")}
        return names | unread | self.to_package() | ours

    def to_package(self) -> dict[str, Any]:
        """Return nested mappings from which the package builds its xLSTMLMModelConfig.

        Its sLSTM cell is the one without CUDA, which stores R and b in our layout.
        """
        theirs = {name: other for other, name in self.aliases.items()}
        fields = {
            theirs.get(name, name): dataclasses.asdict(x) if dataclasses.is_dataclass(x) else x  # type: ignore[arg-type]
            for name, x in self.values().items()
            if name not in OURS
        }
        for block in ("mlstm_block", "slstm_block"):
            for section, unread in self.extra.get(block, {}).items():
                if (fields[block] or {}).get(section) is not None:
                    fields[block][section] = unread | fields[block][section]
        if self.slstm_block is not None:
            cell = {"dtype": "float32"} | fields["slstm_block"]["slstm"] | {"backend": "vanilla"}
            fields["slstm_block"]["slstm"] = cell
        return fields | {"slstm_at": list(self.slstm_at)}


def _rounded_width(name: str, d: int, part: MLSTMLayerConfig | FeedForwardConfig) -> int:
    """Return d times the projection factor, rounded to a multiple as in the package."""
    multiple = part.round_proj_up_to_multiple_of
    rounding = math.ceil if part.round_proj_up_dim_up else math.floor
    width = rounding(part.proj_factor * d / multiple) * multiple
    origin = f"hidden_size {d} * {name}.proj_factor {part.proj_factor}, rounded"
    check_max(origin, width)
    if not width:
        raise ConfigError(f"{origin} to {width}, is no width; set round_proj_up_dim_up to true")
    return width
