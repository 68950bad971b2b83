"""One model of the original xLSTM stack: checked, and read from and written to a mapping."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from mlxhog.errors import ConfigError
from mlxhog.models import ngrams
from mlxhog.models.fields import (
    MOST,
    MOST_LAYERS,
    check_most,
    check_positive,
    check_reset,
    convert,
    doc,
    read,
)
from mlxhog.models.xlstm_v1.block_config import (
    FeedForwardConfig,
    MLSTMBlockConfig,
    MLSTMLayerConfig,
    SLSTMBlockConfig,
    SLSTMLayerConfig,
    check,
    check_dropout,
    read_mlstm_block,
    read_slstm_block,
    rounded_width,
)

OURS = ("chunk_size", "bos_token_id", "reset_at_document_boundaries", *ngrams.FIELDS)
"""Fields that the xlstm package does not have."""

NO_EFFECT = frozenset(
    "model_type architectures transformers_version dtype torch_dtype eos_token_id "
    "pad_token_id".split()
)
"""Fields of a config.json that label files."""

BLOCKS = ("mlstm_block", "slstm_block")


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

    vocab_size: int = field(metadata=doc("rows of the embedding; a run takes its tokenizer's"))
    embedding_dim: int = field(metadata=doc("width of the residual stream, also hidden_size"))
    num_blocks: int = field(metadata=doc("blocks, also num_hidden_layers"))
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
    dropout: float = field(default=0.0, metadata=doc("share of units dropped while it trains"))
    add_embedding_dropout: bool = field(default=False, metadata=doc("the embedding's units, too"))
    tie_weights: bool = field(default=False, metadata=doc("the head is the embedding"))
    weight_decay_on_embedding: bool = field(
        default=False, metadata=doc("weight decay takes the embedding, too")
    )
    chunk_size: int = field(default=64, metadata=doc("positions an mLSTM computes in parallel"))
    bos_token_id: int | None = field(
        default=None, metadata=doc("begins a document; a run takes its tokenizer's")
    )
    reset_at_document_boundaries: bool = field(
        default=False, metadata=doc("the memory begins anew at every bos_token_id")
    )
    ngram_orders: tuple[int, ...] = field(
        default=(), metadata=doc("tables of n-grams, such as 2-8; [] is none")
    )
    ngram_dim: int = field(default=32, metadata=doc("floats in a row of these tables"))
    ngram_rows: int = field(
        default=131072, metadata=doc("most rows of one; more n-grams share rows by a hash")
    )
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Refuse a model that cannot be built; every message has the way out."""
        for name in ("vocab_size", "embedding_dim", "num_blocks", "context_length", "chunk_size"):
            check_positive(name, getattr(self, name))
            check_most(name, getattr(self, name), MOST)
        check_most("num_blocks", self.num_blocks, MOST_LAYERS)
        check_most("embedding_dim", self.embedding_dim)
        check_dropout("dropout", self.dropout)
        self._check_slstm_at()
        if self.mlstm_block is not None:
            check("mlstm_block.mlstm", self.mlstm_block.mlstm)
        if self.slstm_block is not None:
            check("slstm_block.slstm", self.slstm_block.slstm)
            if self.slstm_block.feedforward is not None:
                check("slstm_block.feedforward", self.slstm_block.feedforward)
        if self.mlstm_at:
            self._check_mlstm_widths()
        if self.slstm_at:
            self._check_slstm_widths()
        check_reset(self.reset_at_document_boundaries, self.bos_token_id, self.vocab_size)
        ngrams.check(self.ngram_dim, self.ngram_rows)

    @property
    def model_type(self) -> str:
        """The family."""
        return "xlstm_v1"

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
    def output_logit_soft_cap(self) -> None:
        """Logits of this family have no bound."""
        return None

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
        return rounded_width(self.embedding_dim, self.mlstm_layer)

    @property
    def ffn_dim(self) -> int:
        """U, width of the feed-forward layers of a model that has any."""
        assert self.feedforward is not None
        return rounded_width(self.embedding_dim, self.feedforward)

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
        for key, read_block in zip(BLOCKS, (read_mlstm_block, read_slstm_block), strict=True):
            values[key], unread = read_block(data.get(key), defaults | values, strict=strict)
            if unread:
                extra[key] = unread
        at = data.get("slstm_at")
        if at == "all" or (values["mlstm_block"] is None and not at):
            check_most("num_blocks", values["num_blocks"], MOST_LAYERS)
            at = range(values["num_blocks"])
        return cls(**values, slstm_at=_slstm_at(at), extra=extra)

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
