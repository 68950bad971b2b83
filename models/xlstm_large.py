"""xLSTM Large, the architecture of xLSTM-7B: fields, list of layers, names of its checkpoints.

Every block is an mLSTM layer and a feed-forward layer, whose equations are in
`mad/layers/xlstm_large.py`; the logits are cap(RMSNorm(x) H^T, 30).

Sources: Beck et al. 2025, xLSTM 7B, arXiv:2503.13427; names and rounding of sizes as in
transformers 5.23.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

from mlxhog.errors import ConfigError
from mlxhog.models import ngrams
from mlxhog.models.fields import (
    MOST_LAYERS,
    MOST_WIDTH,
    anything,
    check_fields,
    check_most,
    check_reset,
    doc,
    read,
)
from mlxhog.models.mad.layer import normal, small_std
from mlxhog.models.mad.layers.xlstm_large import LargeFeedForward, LargeMLSTM
from mlxhog.models.model import Layout, Part
from mlxhog.models.spec import ParamSpec

EMBEDDING = "backbone.embeddings.weight"
OUT_NORM = "backbone.out_norm"
HEAD = "lm_head.weight"

WEIGHT_MODES = ("single", "fused")
"""Storage of matrices that share their input in a file; our parameters are always single."""

SPELLINGS = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}
"""The xlstm package's field names beside those of transformers; config.json may have either."""

CAPS = ("gate_soft_cap", "output_logit_soft_cap")
"""Fields for which null means no bound in the xlstm package; for others null is the default."""

NO_EFFECT = frozenset(
    "model_type architectures transformers_version dtype torch_dtype chunkwise_kernel "
    "sequence_kernel step_kernel mode return_last_states autocast_kernel_dtype "
    "inference_state_dtype norm_reduction_force_float32 max_inference_chunksize use_cache "
    "eos_token_id pad_token_id".split()
)
"""Fields of transformers' xLSTMConfig that choose kernels or label files, never the mathematics."""


@dataclass(frozen=True, kw_only=True)
class XLSTMLargeConfig:
    """Sizes and constants of one model, under the field names of transformers' xLSTMConfig.

    `out_norm_bias` is a field of this package: with `use_bias`, xlstm's final norm also has a bias,
    and transformers' has none. `extra` has the fields of a config.json that are not read here; they
    are written back.

    Raises:
        ConfigError: a size does not divide, a number is out of range, or this package does not have
            a requested variant.
    """

    model_type: ClassVar[str] = "xlstm"
    title: ClassVar[str] = "xLSTM Large"
    untied_head: ClassVar[str] = HEAD
    max_length: ClassVar[int] = 0

    vocab_size: int = field(metadata=doc("rows of the embedding; a run takes its tokenizer's"))
    hidden_size: int = field(metadata=doc("width of the residual stream", most=MOST_WIDTH))
    num_hidden_layers: int = field(
        metadata=doc("blocks: an mLSTM, then a SwiGLU", most=MOST_LAYERS)
    )
    num_heads: int = field(
        metadata=doc("heads of every mLSTM; they divide its widths", most=MOST_WIDTH)
    )
    use_bias: bool = field(default=False, metadata=doc("biases in the matrices, too"))
    add_out_norm: bool = field(default=True, metadata=doc("a norm before the head"))
    out_norm_bias: bool = field(default=False, metadata=doc("with use_bias: that norm has one"))
    tie_word_embeddings: bool = field(default=False, metadata=doc("the head is the embedding"))
    norm_eps: float = field(default=1e-6, metadata=doc("added to the variance in norms"))
    qk_dim_factor: float = field(
        default=0.5, metadata=doc("width of queries and of keys / hidden_size", most=MOST_WIDTH)
    )
    v_dim_factor: float = field(
        default=1.0, metadata=doc("width of values / hidden_size", most=MOST_WIDTH)
    )
    chunk_size: int = field(default=64, metadata=doc("positions computed in parallel"))
    eps: float = field(default=1e-6, metadata=doc("added to the mLSTM's denominator"))
    ffn_proj_factor: float = field(
        default=2.667, metadata=doc("width of the SwiGLU / hidden_size", most=MOST_WIDTH)
    )
    ffn_round_up_to_multiple_of: int = field(
        default=64, metadata=doc("the SwiGLU's width is a multiple of it")
    )
    gate_soft_cap: float = field(default=15.0, metadata=doc("bound of the gates' preactivations"))
    output_logit_soft_cap: float = field(default=30.0, metadata=doc("bound of the logits"))
    reset_at_document_boundaries: bool = field(
        default=False, metadata=doc("the memory begins anew at every bos_token_id")
    )
    bos_token_id: int | None = field(
        default=None,
        metadata=doc("begins a document; a run takes its tokenizer's", check=anything),
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
        for name in ("qk_dim", "v_dim", "ffn_dim"):
            check_most(name, getattr(self, name))
        self._check_divides("qk_dim_factor", self.qk_dim)
        self._check_divides("v_dim_factor", self.v_dim)
        if self.out_norm_bias and not self.add_out_norm:
            raise ConfigError(
                "out_norm_bias is true and add_out_norm is false; there is no norm to have a bias"
            )
        check_reset(self.reset_at_document_boundaries, self.bos_token_id, self.vocab_size)

    @cached_property
    def layout(self) -> Layout:
        """The model as a list of layers."""
        d, bias = self.hidden_size, self.use_bias
        wang = 2 / (self.num_hidden_layers * math.sqrt(d))
        mlstm = LargeMLSTM(
            heads=self.num_heads,
            qk=self.qk_dim,
            v=self.v_dim,
            bias=bias,
            chunk_size=self.chunk_size,
            eps=self.eps,
            gate_cap=self.gate_soft_cap,
            wang=wang,
        )
        ffn = LargeFeedForward(inner=self.ffn_dim, bias=bias, wang=wang)
        names = [f"backbone.blocks.{number}" for number in range(self.num_hidden_layers)]
        small, shape = normal(small_std(d)), (self.vocab_size, d)
        tied = self.tie_word_embeddings
        head = ParamSpec(HEAD, shape, small, decay=True, product=True)
        out_norm = [ParamSpec(f"{OUT_NORM}.weight", (d,), "ones")] * self.add_out_norm
        out_norm += [ParamSpec(f"{OUT_NORM}.bias", (d,), "zeros")] * self.out_norm_bias
        return Layout(
            # A tied embedding has a dense gradient: every row is also a row of the head.
            embedding=ParamSpec(EMBEDDING, shape, small, kind="dense" if tied else "rows"),
            ngrams=tuple(ngrams.weight_specs(self)),
            blocks=tuple(
                (
                    Part(name=f"{name}.mlstm_layer", norm=f"{name}.norm_mlstm", layer=mlstm, d=d),
                    Part(name=f"{name}.ffn", norm=f"{name}.norm_ffn", layer=ffn, d=d),
                )
                for name in names
            ),
            norms=("rms", "ones", bias),
            out_norm=tuple(out_norm),
            head=() if tied else (head,),
        )

    @property
    def qk_dim(self) -> int:
        """Width of q and k over all heads."""
        return int(self.hidden_size * self.qk_dim_factor)

    @property
    def v_dim(self) -> int:
        """Width of v, o and the cell's output over all heads."""
        return int(self.hidden_size * self.v_dim_factor)

    @property
    def qk_head_dim(self) -> int:
        """DK, width of q and k in one head."""
        return self.qk_dim // self.num_heads

    @property
    def v_head_dim(self) -> int:
        """DV, width of v in one head."""
        return self.v_dim // self.num_heads

    @property
    def ffn_dim(self) -> int:
        """U, width of the feed-forward layer.

        The fractional width enters the rounding as it is, so 768 * 2.667 = 2048.256 gives 2048.
        """
        multiple = self.ffn_round_up_to_multiple_of
        return int((self.hidden_size * self.ffn_proj_factor + multiple - 1) // multiple * multiple)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, strict: bool = False) -> Self:
        """Read a config.json of transformers or of the xlstm package, or our YAML.

        Args:
            data: field -> value; numbers may be text, since PyYAML reads `1e-6` as a string.
            strict: refuse unknown fields (a YAML written by hand) instead of keeping them.

        Raises:
            ConfigError: a field is unknown, missing, of the wrong type or given twice differently.
        """
        if data.get("model_type", "xlstm") != "xlstm":
            raise ConfigError(
                f"model_type is {data['model_type']!r}, and only 'xlstm' is known; "
                "choose an xLSTM Large architecture or checkpoint"
            )
        for name in CAPS:
            if name in data and data[name] is None:
                raise ConfigError(f"{name} is null, no bound, which is not supported; set a number")
        _check_weight_mode(data.get("weight_mode", "single"))
        data = {key: value for key, value in data.items() if key != "weight_mode"}
        readers = {"ngram_orders": ngrams.read_orders}
        values, extra = read(
            cls, data, strict=strict, spellings=SPELLINGS, readers=readers, no_effect=NO_EFFECT
        )
        return cls(**values, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for transformers' AutoConfig, with both spellings of each size."""
        names = {"architectures": ["xLSTMForCausalLM"], "model_type": "xlstm"}
        # Without this transformers would run the cell in bfloat16, unlike our training.
        kernels = {"autocast_kernel_dtype": "float32", "inference_state_dtype": "float32"}
        both = {other: getattr(self, name) for other, name in SPELLINGS.items()}
        single = {"weight_mode": "single"}
        fields = self._fields()
        if not self.out_norm_bias:  # transformers does not know the field
            del fields["out_norm_bias"]
        if not self.ngram_orders:  # so that other models are written as before
            fields = {name: value for name, value in fields.items() if name not in ngrams.FIELDS}
        return names | kernels | dict(self.extra) | fields | single | both

    def _fields(self) -> dict[str, Any]:
        names = [f.name for f in dataclasses.fields(self) if f.name != "extra"]
        return {name: getattr(self, name) for name in names}

    def _check_divides(self, factor: str, width: int) -> None:
        if width >= self.num_heads and width % self.num_heads == 0:
            return
        raise ConfigError(
            f"hidden_size {self.hidden_size} * {factor} {getattr(self, factor)} = {width} does not "
            f"divide into num_heads {self.num_heads}; change one of the three"
        )


def _check_weight_mode(value: object) -> None:
    if value not in WEIGHT_MODES:
        raise ConfigError(f"weight_mode is {value!r}; choose one of {', '.join(WEIGHT_MODES)}")
