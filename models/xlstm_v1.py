"""The original xLSTM stack of mLSTM and sLSTM blocks: fields, list of layers, parameters' names.

A block is an mLSTM layer, or an sLSTM layer and, unless it has none, a feed-forward layer; their
equations are in `mad/layers/xlstm_v1.py`. Norms are LayerNorm with the scale 1 + weight and eps
1e-5; logits = LN(x) H^T.

Fields have the names of the xlstm package. A block's width, bias and dropout are those of the
model. The package repeats them inside each block; here those values are only compared with the
model's.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517, and the package xlstm 2.0.6 (NX-AI/xlstm).
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from mlxhog.errors import ConfigError
from mlxhog.models import ngrams
from mlxhog.models.fields import (
    MOST_LAYERS,
    MOST_WIDTH,
    anything,
    check_fields,
    check_most,
    check_names,
    check_rate,
    check_reset,
    convert,
    doc,
    one_of,
    read,
    unknown,
)
from mlxhog.models.mad.layer import Layer, bound, normal, small_std
from mlxhog.models.mad.layers.xlstm_v1 import MLSTMV1, NORM_EPS, SLSTMV1, FeedForwardV1
from mlxhog.models.model import Layout, Part
from mlxhog.models.spec import ParamSpec

EMBEDDING = "token_embedding.weight"
OUT_NORM = "xlstm_block_stack.post_blocks_norm"
HEAD = "lm_head.weight"

OURS = ("chunk_size", "bos_token_id", "reset_at_document_boundaries", *ngrams.FIELDS)
"""Fields that the xlstm package does not have."""

NO_EFFECT = frozenset(
    "model_type architectures transformers_version dtype torch_dtype eos_token_id "
    "pad_token_id".split()
)
"""Fields of a config.json that label files."""

BLOCKS = {"mlstm_block": ("mlstm",), "slstm_block": ("slstm", "feedforward")}
"""Sections of each kind of block; of an absent one, the package's defaults."""

ONLY = {
    "function": "slstm",
    "num_states": 4,
    "num_gates": 4,
    "initial_val": 0.0,
    "gradient_recurrent_cut": False,
    "gradient_recurrent_clipval": None,
    "forward_clipval": None,
    "ff_type": "ffn_gated",
}
"""Fields of the package that change the mathematics, and the one value that is supported."""

NO_EFFECT_INSIDE = frozenset(
    "backend batch_size input_shape internal_input_shape output_shape constants dtype dtype_b "
    "dtype_r dtype_w dtype_g dtype_s dtype_a enable_automatic_mixed_precision".split()
)
"""Fields of the package that choose kernels or their types, never the mathematics."""

REPEATED = {"hidden_size": "embedding_dim"} | {
    name: name for name in ("embedding_dim", "bias", "dropout", "context_length")
}
"""Fields of the model that the package repeats inside a block: name there -> name in the model."""


BIAS_INIT = {
    "powerlaw_blockdependent": "slstm_powerlaw:{NH}:{exponent!r}",
    "small_init": "slstm_linspace:{NH}:3.0:6.0",
    "standard": "{bound}",
    "zeros": "zeros",
}
"""Initialisers of the biases of an sLSTM cell."""


def _check_taps(name: str, size: int) -> None:
    if size < 2:
        raise ConfigError(f"{name} is {size}; set it to 2 or more")


def _check_taps_if_any(name: str, size: int) -> None:
    if size < 2 and size != 0:
        raise ConfigError(f"{name} is {size}; set it to 2 or more, or to 0 for none")


@dataclass(frozen=True, kw_only=True)
class MLSTMLayerConfig:
    """Of the mLSTM layer; `proj_factor` widens the model's width to that of the cell."""

    num_heads: int = field(default=4, metadata=doc("heads; they divide the cell's width"))
    conv1d_kernel_size: int = field(
        default=4, metadata=doc("taps of the convolution before it", check=_check_taps)
    )
    qkv_proj_blocksize: int = field(
        default=4, metadata=doc("units of a group that q, k and v mix within")
    )
    proj_factor: float = field(default=2.0, metadata=doc("width of the cell / embedding_dim"))
    round_proj_up_dim_up: bool = field(default=True, metadata=doc("round that width up, not down"))
    round_proj_up_to_multiple_of: int = field(default=64, metadata=doc("to a multiple of it"))


@dataclass(frozen=True, kw_only=True)
class SLSTMLayerConfig:
    """Of the sLSTM layer; a kernel of size 0 is no convolution."""

    num_heads: int = field(default=4, metadata=doc("heads; they divide embedding_dim"))
    conv1d_kernel_size: int = field(
        default=4,
        metadata=doc("taps of the convolution before it; 0 is none", check=_check_taps_if_any),
    )
    bias_init: str = field(
        default="powerlaw_blockdependent",
        metadata=doc("forget gates: or small_init, standard, zeros", check=one_of(*BIAS_INIT)),
    )
    recurrent_weight_init: str = field(
        default="zeros", metadata=doc("or standard", check=one_of("zeros", "standard"))
    )
    group_norm_weight: bool = field(default=True, metadata=doc("the norm of its heads has weights"))


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """Of the gated feed-forward layer of an sLSTM block; its bias and dropout are its own."""

    proj_factor: float = field(default=1.3, metadata=doc("its width / embedding_dim"))
    round_proj_up_dim_up: bool = field(default=True, metadata=doc("round that width up, not down"))
    round_proj_up_to_multiple_of: int = field(default=64, metadata=doc("to a multiple of it"))
    act_fn: str = field(
        default="gelu",
        metadata=doc(
            "of its gate: or relu, relu^2, sigmoid, swish, selu",
            check=one_of("gelu", "relu", "relu^2", "sigmoid", "swish", "selu"),
        ),
    )
    dropout: float = field(
        default=0.0, metadata=doc("share of its units dropped while it trains", check=check_rate)
    )
    bias: bool = field(default=False, metadata=doc("biases in its matrices"))


@dataclass(frozen=True, kw_only=True)
class MLSTMBlockConfig:
    """An mLSTM block: norm, mLSTM layer."""

    mlstm: MLSTMLayerConfig = field(
        default_factory=MLSTMLayerConfig, metadata=doc("the mLSTM layer")
    )


@dataclass(frozen=True, kw_only=True)
class SLSTMBlockConfig:
    """An sLSTM block: norm, sLSTM layer and, unless it is None, norm, feed-forward layer."""

    slstm: SLSTMLayerConfig = field(
        default_factory=SLSTMLayerConfig, metadata=doc("the sLSTM layer")
    )
    feedforward: FeedForwardConfig | None = field(
        default_factory=FeedForwardConfig, metadata=doc("the gated layer after it, or null")
    )


def _rounded_width(d: int, part: MLSTMLayerConfig | FeedForwardConfig) -> int:
    """Width d times the projection factor, rounded to a whole multiple as the package does."""
    multiple = part.round_proj_up_to_multiple_of
    rounding = math.ceil if part.round_proj_up_dim_up else math.floor
    return rounding(part.proj_factor * d / multiple) * multiple


@dataclass(frozen=True, kw_only=True)
class XLSTMV1Config:
    """Sizes and constants of one model, under the names of the package's xLSTMLMModelConfig.

    Further fields: `chunk_size`, the positions that the mLSTM cell computes in parallel, and
    whether the memory is reset at every `bos_token_id`. `context_length` limits the package's
    sequences, not ours. `extra` has the fields that this package does not read; they are written
    back.

    Raises:
        ConfigError: a size does not divide, a number is out of range, or fields contradict.
    """

    model_type: ClassVar[str] = "xlstm_v1"
    title: ClassVar[str] = "xLSTM of the first paper"
    untied_head: ClassVar[str] = HEAD
    norm_eps: ClassVar[float] = NORM_EPS
    max_length: ClassVar[int] = 0
    output_logit_soft_cap: ClassVar[None] = None

    vocab_size: int = field(metadata=doc("rows of the embedding; a run takes its tokenizer's"))
    embedding_dim: int = field(
        metadata=doc("width of the residual stream, also hidden_size", most=MOST_WIDTH)
    )
    num_blocks: int = field(metadata=doc("blocks, also num_hidden_layers", most=MOST_LAYERS))
    mlstm_block: MLSTMBlockConfig | None = field(
        default=None, metadata=doc("of every block that is not in slstm_at")
    )
    slstm_block: SLSTMBlockConfig | None = field(
        default=None, metadata=doc("of the blocks in slstm_at")
    )
    slstm_at: tuple[int, ...] = field(
        default=(), metadata=doc("numbers of the sLSTM blocks, from 0; or all")
    )
    context_length: int = field(
        default=2048, metadata=doc("bound of the xlstm package's sequences, not of ours")
    )
    add_post_blocks_norm: bool = field(default=True, metadata=doc("a norm before the head"))
    bias: bool = field(default=False, metadata=doc("biases in the matrices"))
    dropout: float = field(
        default=0.0, metadata=doc("share of units dropped while it trains", check=check_rate)
    )
    add_embedding_dropout: bool = field(default=False, metadata=doc("the embedding's units, too"))
    tie_weights: bool = field(default=False, metadata=doc("the head is the embedding"))
    weight_decay_on_embedding: bool = field(
        default=False, metadata=doc("weight decay takes the embedding, too")
    )
    chunk_size: int = field(default=64, metadata=doc("positions an mLSTM computes in parallel"))
    bos_token_id: int | None = field(
        default=None,
        metadata=doc("begins a document; a run takes its tokenizer's", check=anything),
    )
    reset_at_document_boundaries: bool = field(
        default=False, metadata=doc("the memory begins anew at every bos_token_id")
    )
    ngram_orders: tuple[int, ...] = field(
        default=(), metadata=doc("tables of n-grams, such as 2-8; [] is none")
    )
    ngram_dim: int = field(
        default=32, metadata=doc("floats in a row of these tables", check=ngrams.check_dim)
    )
    ngram_rows: int = field(
        default=131072,
        metadata=doc(
            "most rows of one; more n-grams share rows by a hash", check=ngrams.check_rows
        ),
    )
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Refuse a model that cannot be built; every message has the way out."""
        check_fields(self)
        self._check_slstm_at()
        if self.mlstm_at:
            self._check_mlstm_widths()
        if self.slstm_at:
            self._check_slstm_widths()
        check_reset(self.reset_at_document_boundaries, self.bos_token_id, self.vocab_size)

    @property
    def hidden_size(self) -> int:
        """d, width of the residual stream."""
        return self.embedding_dim

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
        return self.num_blocks

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head is the embedding."""
        return self.tie_weights

    @property
    def mlstm_at(self) -> tuple[int, ...]:
        """Blocks that are not in `slstm_at`."""
        return tuple(sorted({*range(self.num_blocks)} - {*self.slstm_at}))

    @property
    def mlstm_layer(self) -> MLSTMLayerConfig:
        """Settings of the mLSTM layers of a model that has any."""
        assert self.mlstm_block is not None
        return self.mlstm_block.mlstm

    @property
    def slstm_layer(self) -> SLSTMLayerConfig:
        """Settings of the sLSTM layers of a model that has any."""
        assert self.slstm_block is not None
        return self.slstm_block.slstm

    @property
    def feedforward(self) -> FeedForwardConfig | None:
        """Settings of the feed-forward layers; None where sLSTM blocks have none."""
        return None if self.slstm_block is None else self.slstm_block.feedforward

    @property
    def inner_dim(self) -> int:
        """I, width of the mLSTM cell over all heads."""
        return _rounded_width(self.embedding_dim, self.mlstm_layer)

    @property
    def ffn_dim(self) -> int:
        """U, width of the feed-forward layers of a model that has any."""
        assert self.feedforward is not None
        return _rounded_width(self.embedding_dim, self.feedforward)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, strict: bool = False) -> Self:
        """Read the package's config as nested mappings, with or without its resolved fields.

        Args:
            data: field -> value; numbers may be text, since PyYAML reads `1e-6` as a string. Names
                that begin with an underscore are results of the package and not read.
            strict: refuse unknown fields (a YAML written by hand) instead of keeping them.

        Raises:
            ConfigError: a field is unknown, missing, of the wrong type or contradicts another.
        """
        if data.get("model_type", "xlstm_v1") != "xlstm_v1":
            raise ConfigError(
                f"model_type is {data['model_type']!r}, and this family is 'xlstm_v1'; "
                "choose an architecture or checkpoint of xLSTMLMModel"
            )
        apart = (*BLOCKS, "slstm_at")
        own = {
            key: None if (key, value) == ("context_length", -1) else value
            for key, value in data.items()
            if key not in apart and not str(key).startswith("_")
        }
        readers = {"ngram_orders": ngrams.read_orders}
        values, extra = read(cls, own, strict=strict, readers=readers, no_effect=NO_EFFECT)
        defaults = {"context_length": cls.context_length, "bias": cls.bias, "dropout": cls.dropout}
        for key in BLOCKS:
            values[key], unread = _block(key, data.get(key), defaults | values, strict=strict)
            if unread:
                extra[key] = unread
        at = data.get("slstm_at")
        if at == "all" or (values["mlstm_block"] is None and not at):
            check_most("num_blocks", values["num_blocks"], MOST_LAYERS)
            at = range(values["num_blocks"])
        return cls(**values, slstm_at=_slstm_at(at), extra=extra)

    @cached_property
    def layout(self) -> Layout:
        """The model as a list of layers."""
        d, tied = self.embedding_dim, self.tie_weights
        shape, small = (self.vocab_size, d), normal(small_std(d))
        kind: Literal["dense", "rows"] = "dense" if tied else "rows"
        decays = self.weight_decay_on_embedding
        head = ParamSpec(HEAD, shape, small, decay=True, product=True)
        out_norm = ParamSpec(f"{OUT_NORM}.weight", (d,), "zeros")
        return Layout(
            embedding=ParamSpec(EMBEDDING, shape, small, kind, decays),
            ngrams=tuple(ngrams.weight_specs(self)),
            blocks=tuple(self._block(number) for number in range(self.num_blocks)),
            norms=("layer", "zeros", False),
            out_norm=(out_norm,) if self.add_post_blocks_norm else (),
            head=() if tied else (head,),
            dropout=self.dropout if self.add_embedding_dropout else 0.0,
        )

    def _block(self, number: int) -> tuple[Part, ...]:
        d, name = self.embedding_dim, f"xlstm_block_stack.blocks.{number}"
        residual_std = 2 / self.num_blocks / math.sqrt(d)

        def part(word: str, layer: Layer, dropout: float) -> Part:
            return Part(
                name=f"{name}.{word}", norm=f"{name}.{word}_norm", layer=layer, d=d, dropout=dropout
            )

        if number not in self.slstm_at:
            own = self.mlstm_layer
            mlstm = _MLSTM(
                heads=own.num_heads,
                conv=own.conv1d_kernel_size,
                qkv_block=own.qkv_proj_blocksize,
                inner=self.inner_dim,
                bias=self.bias,
                residual_std=residual_std,
                chunk_size=self.chunk_size,
            )
            return (part("xlstm", mlstm, self.dropout),)
        cell, ffn = self.slstm_layer, self.feedforward
        depth = number / (self.num_blocks - 1) if self.num_blocks > 1 else 0.0
        values = {"NH": cell.num_heads, "exponent": 0.3 + 1.3 * depth, "bound": bound(d)}
        slstm = _SLSTM(
            heads=cell.num_heads,
            conv=cell.conv1d_kernel_size,
            forget=BIAS_INIT[cell.bias_init].format(**values),
            recurrent=bound(d) if cell.recurrent_weight_init == "standard" else "zeros",
            norm_weight=cell.group_norm_weight,
        )
        if ffn is None:
            return (part("xlstm", slstm, self.dropout),)
        layer = FeedForwardV1(
            inner=self.ffn_dim, act_fn=ffn.act_fn, bias=ffn.bias, residual_std=residual_std
        )
        return part("xlstm", slstm, self.dropout), part("ffn", layer, ffn.dropout)

    def to_dict(self) -> dict[str, Any]:
        """Write the fields of a config.json: the package's own and ours."""
        names = {"architectures": ["xLSTMLMModel"], "model_type": self.model_type}
        hidden = () if self.ngram_orders else ngrams.FIELDS  # other models are written as before
        ours = {name: getattr(self, name) for name in OURS if name not in hidden}
        unread = {key: value for key, value in self.extra.items() if key not in BLOCKS}
        return names | unread | self.to_package() | ours

    def to_package(self) -> dict[str, Any]:
        """Return nested mappings from which the package builds its xLSTMLMModelConfig.

        Its sLSTM cell is the one without CUDA, which stores R and b in our layout.
        """
        fields = dataclasses.asdict(dataclasses.replace(self, extra={}))
        fields = {name: value for name, value in fields.items() if name not in (*OURS, "extra")}
        for block in BLOCKS:
            for section, unread in self.extra.get(block, {}).items():
                fields[block][section] = unread | fields[block][section]
        if self.slstm_block is not None:
            cell = {"dtype": "float32"} | fields["slstm_block"]["slstm"] | {"backend": "vanilla"}
            fields["slstm_block"]["slstm"] = cell
        return fields | {"slstm_at": list(self.slstm_at)}

    def _check_slstm_at(self) -> None:
        if len(set(self.slstm_at)) < len(self.slstm_at):
            raise ConfigError(f"slstm_at is {list(self.slstm_at)}; name every block once")
        for block in self.slstm_at:
            if not 0 <= block < self.num_blocks:
                raise ConfigError(
                    f"slstm_at names block {block}, and the model has blocks 0 to "
                    f"{self.num_blocks - 1}; count from 0, or raise num_blocks"
                )
        if self.slstm_at and self.slstm_block is None:
            raise ConfigError(
                f"slstm_at is {list(self.slstm_at)} and there is no slstm_block; "
                "add slstm_block, or make slstm_at []"
            )
        if self.mlstm_at and self.mlstm_block is None:
            raise ConfigError(
                f"slstm_at {list(self.slstm_at)} leaves blocks to mLSTM and there is no "
                "mlstm_block; add mlstm_block, or make slstm_at 'all'"
            )

    def _check_mlstm_widths(self) -> None:
        layer, inner = self.mlstm_layer, self.inner_dim
        origin = f"embedding_dim {self.embedding_dim} * mlstm_block.mlstm.proj_factor"
        width = f"{origin} {layer.proj_factor}, rounded to {inner},"
        check_most(width, inner)
        if not inner:
            raise ConfigError(f"{width} is no width; set round_proj_up_dim_up to true")
        if inner % layer.num_heads:
            raise ConfigError(
                f"{width} does not divide into mlstm_block.mlstm.num_heads {layer.num_heads}; "
                "change one of them, or round_proj_up_to_multiple_of"
            )
        groups = inner // layer.qkv_proj_blocksize
        if not groups or inner % groups:
            raise ConfigError(
                f"{width} does not divide into blocks of mlstm_block.mlstm.qkv_proj_blocksize "
                f"{layer.qkv_proj_blocksize}; set that to a divisor, such as 4"
            )

    def _check_slstm_widths(self) -> None:
        heads, d = self.slstm_layer.num_heads, self.embedding_dim
        if d % heads:
            raise ConfigError(
                f"embedding_dim {d} does not divide into slstm_block.slstm.num_heads {heads}; "
                f"set embedding_dim to {max(round(d / heads), 1) * heads}, or change num_heads"
            )
        ffn = self.feedforward
        if ffn is not None:
            check_most("the width of slstm_block.feedforward", self.ffn_dim)
        if ffn is not None and not self.ffn_dim:
            raise ConfigError(
                f"embedding_dim {d} * slstm_block.feedforward.proj_factor {ffn.proj_factor}, "
                f"rounded to a multiple of {ffn.round_proj_up_to_multiple_of}, is 0; "
                "set round_proj_up_dim_up to true"
            )


def _slstm_at(value: object) -> tuple[int, ...]:
    """Read slstm_at, after "all" has been resolved."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple | range):
        raise ConfigError(f"slstm_at is {value!r}; give it a list such as [1], or 'all'")
    return tuple(sorted(int(str(convert("slstm_at", block, int))) for block in value))


def _block(
    name: str, data: object, model: Mapping[str, Any], *, strict: bool
) -> tuple[Any, dict[str, Any]]:
    """Read a kind of block, with the fields that are not read; None is a model without it.

    `model` has the model's own fields, which those repeated inside have to equal.
    """
    if data is None:
        return None, {}
    names = BLOCKS[name]
    if not isinstance(data, Mapping):
        raise ConfigError(f"{name} is {data!r}; give it fields such as {names[0]}, or null")
    check_names(name, data)
    for key in data:
        if key not in names and not key.startswith("_"):
            raise ConfigError(unknown(f"{name}.{key}", [f"{name}.{section}" for section in names]))
    sections, unread = dict[str, Any](), dict[str, Any]()
    for section in names:
        value = data.get(section, {})
        if value is None and section != "feedforward":
            raise ConfigError(
                f"{name}.{section} is null; leave {name} out where no block is of that kind"
            )
        # Bias and dropout of a feed-forward layer are its own; only its width is the model's.
        theirs = (
            {"embedding_dim": model.get("embedding_dim")} if section == "feedforward" else model
        )
        if value is not None:
            value, extra = _section(f"{name}.{section}", SECTIONS[section], value, theirs, strict)
            unread |= {section: extra} if extra else {}
        sections[section] = value
    kind = MLSTMBlockConfig if name == "mlstm_block" else SLSTMBlockConfig
    return kind(**sections), unread


SECTIONS = {
    "mlstm": MLSTMLayerConfig,
    "slstm": SLSTMLayerConfig,
    "feedforward": FeedForwardConfig,
}


def _section(
    where: str, kind: type[Any], data: object, model: Mapping[str, Any], strict: bool
) -> tuple[Any, dict[str, Any]]:
    """Read one section into its config; return also the fields without effect."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {data!r}; give it fields, or {{}} for the defaults")
    own = {}
    for key, value in data.items():
        name = f"{where}.{key}"
        if str(key).startswith("_"):
            continue  # the package's own intermediate results
        if key in REPEATED and REPEATED[key] in model and key not in kind.__dataclass_fields__:
            of_model = REPEATED[key]
            if value not in (None, -1, model[of_model]):
                raise ConfigError(
                    f"{name} is {value!r} and {of_model} of the model {model[of_model]!r}; "
                    f"remove {name}, which has to be the same"
                )
        elif key in ONLY:
            if value != ONLY[key]:
                raise ConfigError(
                    f"{name} is {value!r}, and only {ONLY[key]!r} is supported; remove it"
                )
        else:
            own[key] = value
    values, extra = read(kind, own, strict=strict, where=f"{where}.", no_effect=NO_EFFECT_INSIDE)
    return kind(**values), extra


@dataclass(frozen=True, kw_only=True)
class _MLSTM(MLSTMV1):
    """The layer in a model, whose block gives its parameters their prefix."""

    prefix = ""

    inner: int | None = None
    bias: bool = False
    residual_std: float | None = None
    chunk_size: int = 64


@dataclass(frozen=True, kw_only=True)
class _SLSTM(SLSTMV1):
    """The layer in a model, as `_MLSTM`."""

    prefix = ""

    forget: str = "zeros"
    recurrent: str = "zeros"
    norm_weight: bool = True
