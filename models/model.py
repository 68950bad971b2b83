"""The model: an embedding, a list of blocks, a final norm and a head.

With B batch, S sequence, d = hidden_size, V vocabulary:

    x = E[tokens]                     (B, S, d); n-gram and position embeddings may be added
    x = x + layer(norm(x))            for every layer of every block: a sequence or channel mixer
    logits = norm(x) H^T + b          H = E where they are tied; b and this norm may be absent

A family, such as xLSTM Large, is a configuration whose `layout` is that list, under the names of
its checkpoints; every layer has its own equations (`layers/`). norm is RMSNorm with the scale w, or
LayerNorm with the scale 1 + w.

`params` maps every name of `layout.spec` to a float32 array of that shape. All functions are pure.
This module imports no framework.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, Self, cast

from mlxhog.config.options import option
from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.models import ngrams
from mlxhog.models.adapters import A, LoRA
from mlxhog.models.fields import MAX_WIDTH, Fields, custom, positive, read
from mlxhog.models.layers.layer import ForwardContext, Layer
from mlxhog.models.ops.arrays import Array, Arrays, MatmulWeight
from mlxhog.models.ops.operators import is_frozen
from mlxhog.models.spec import ParamSpec, small

Params = Mapping[str, Array]
State = Sequence[tuple[Array, ...]]
"""A tuple of arrays per block, of all its layers; the first axis is the batch.

With n-gram tables a tuple of the last ids comes first, see `NgramTables.ids`."""


@dataclass(frozen=True, kw_only=True)
class ResidualBlock:
    """A layer with its norm and residual: x + layer(norm(x)), or layer(x)."""

    name: str  # prefix of the layer's parameters, and its dropout site
    layer: Layer
    d: int  # width of x
    norm: str = ""  # name of the norm before it; "" for layer(x)
    dropout: float = 0.0  # dropout rate
    adapter: LoRA | None = None

    @cached_property
    def spec(self) -> list[ParamSpec]:
        """The layer's parameters under their names in the model."""
        own = self.layer.param_spec(self.d)
        specs = [replace(spec, name=f"{self.name}.{spec.name}") for spec in own]
        if self.adapter is not None:
            specs += [matrix for spec in specs for matrix in self.adapter.matrices(spec)]
        return specs

    @cached_property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of its state for one sequence, before the first position."""
        every = self.layer.state_shapes(self.d, 0).values()
        return tuple(tuple(shape) for shapes in every for shape in shapes)

    def forward(
        self, params: Params, x: Array, state: tuple[Array, ...] | None, ctx: ForwardContext
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return the layer's y (B, S, d), and its state after x; a state of None is initial."""
        start = len(self.name) + 1
        own = {spec.name[start:]: params[spec.name] for spec in self.spec}
        state = (None,) * len(self.state_shapes) if state is None else state
        ctx = replace(ctx.at(self.name), lora=None if self.adapter is None else self.adapter.scale)
        if self.layer.keeps_bf16:
            ctx = replace(ctx, ops=ctx.ops.keeping_bf16())
        try:
            result = self.layer.forward(own, x, state, ctx)
        except KeyError as error:
            raise ConfigError(
                f"layer {self.layer.name} reads the parameter {error}, which its param_spec does "
                f"not declare (it declares {', '.join(own) or 'none'}); declare it there, or read "
                f"another one{did_you_mean(error.args[0], own)}"
            ) from error
        for name, w in own.items():
            if name.endswith(A) and id(w) not in ctx.multiplied:
                raise ConfigError(
                    f"layer {self.layer.name} multiplies by {name.removesuffix(A)} itself, "
                    "without the product of its adapter; leave it out of the targets"
                )
        return result


Block = tuple[ResidualBlock, ...]
"""The sublayers of a block; only the first may have a state."""


@dataclass(frozen=True, kw_only=True)
class BlockStack:
    """A model as a list of blocks; the first may add positions, the last may be a decoder."""

    embedding: ParamSpec  # E
    blocks: tuple[Block, ...]
    out_norm: tuple[ParamSpec, ...]  # parameters of the final norm; none without one
    head: tuple[ParamSpec, ...]  # H, unless it is E, and b, if there is one
    ngrams: tuple[ParamSpec, ...] = ()  # W and the n-gram tables, if there are any
    norms: tuple[Literal["rms", "layer"], str, bool] = ("rms", "ones", False)  # kind, scale, bias
    dropout: float = 0.0  # dropout rate of the embedded tokens
    adapter: LoRA | None = None

    @cached_property
    def spec(self) -> dict[str, ParamSpec]:
        """Every parameter by its name, in the order of use."""
        of_blocks = (spec for part in self.parts() for spec in self.part_spec(part))
        specs = (self.embedding, *self.ngrams, *of_blocks, *self.out_norm, *self.head)
        if self.adapter is not None:
            specs = tuple(map(self.adapter.frozen, specs))
        return {spec.name: spec for spec in specs}

    def with_adapter(self, adapter: LoRA) -> "BlockStack":
        """Return the stack with an adapter beside its frozen parameters, which must fit it."""
        blocks = tuple(
            tuple(replace(part, adapter=adapter) for part in block) for block in self.blocks
        )
        stack = replace(self, blocks=blocks, adapter=adapter)
        adapter.check(stack.spec)
        return stack

    def part_spec(self, part: ResidualBlock) -> Iterator[ParamSpec]:
        """Return the parameters of a sublayer with its norm."""
        if part.norm:
            yield ParamSpec(f"{part.norm}.weight", (part.d,), self.norms[1])
        if part.norm and self.norms[2]:
            yield ParamSpec(f"{part.norm}.bias", (part.d,), "zeros")
        yield from part.spec

    def parts(self) -> Iterator[ResidualBlock]:
        """Return every sublayer, in the order of use."""
        return (part for block in self.blocks for part in block)


LAST = (
    "reset_at_document_boundaries", "bos_token_id", "ngram_orders", "ngram_dim", "ngram_rows",
)  # fmt: skip
"""Fields after those of the family in a file."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Fields, ABC):
    """Sizes and constants of one model; picklable, checked when it is made.

    `extra` has the fields of a config.json that are not read here; they are written back. Families
    add fields; an option that a family lacks is a class attribute.

    Raises:
        ConfigError: a size does not divide, a number is out of range, fields contradict, or this
            package does not have a requested variant.
    """

    model_type: ClassVar[str]  # the family, a key of `families.FAMILIES`
    title: ClassVar[str]  # name of the family for people
    untied_head: ClassVar[str] = "lm_head.weight"  # H where it is not the embedding
    in_xlstm: ClassVar[bool] = True  # whether the xlstm package has the architecture
    in_transformers = False  # whether transformers has a class for it; else an export has ours
    hf_cache = True  # whether that class can generate with its cache
    num_hidden_layers = 0  # blocks, without one of positions and a decoder
    max_length = 0  # longest sequence, if positions or layers have one
    position = "none"  # position embedding
    backbone = "language-model"  # or autoencoder, see `mad/config.py`
    norm_eps = 1e-6  # epsilon of every norm
    tie_word_embeddings = False  # whether the head is the embedding
    output_logit_soft_cap = cast(float | None, None)  # bound of the logits
    reset_at_document_boundaries = False  # whether the state is reset at every `bos_token_id`
    own_layers = cast(tuple[Layer, ...], ())  # layers, perhaps of a plug-in

    vocab_size: int = positive("rows of the embedding; a run takes its tokenizer's")
    hidden_size: int = positive("width of the residual stream", high=MAX_WIDTH)
    bos_token_id: int | None = option(None, "begins a document; a run takes its tokenizer's")
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    adapter: LoRA | None = None  # of a run; no field of a config.json

    def to_package(self) -> dict[str, Any] | None:
        """Return the nested mappings of the xlstm package's config; None if it is flat."""
        return None

    @property
    @abstractmethod
    def stack(self) -> BlockStack:
        """The model as a list of layers, without an adapter."""

    @cached_property
    def layout(self) -> BlockStack:
        """The model as a list of layers."""
        return self.stack if self.adapter is None else self.stack.with_adapter(self.adapter)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, strict: bool = False) -> Self:
        """Read a config.json of this package or of others that have the family, or our YAML.

        Arguments and errors are as of `fields.read`.
        """
        data = {key: value for key, value in data.items() if key != "model_type"}
        values, extra = read(cls, data, strict=strict)
        return cls(**values, extra=extra)

    def values(self) -> dict[str, Any]:
        """Return every field but `extra`, in the order of files."""
        own = [one.name for one in fields(self) if one.name not in ("extra", "adapter")]
        return {
            name: getattr(self, name)
            for name in sorted(own, key=lambda n: n in LAST and 1 + LAST.index(n))
        }

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the fields of a config.json."""


@dataclass(frozen=True, kw_only=True)
class XLSTMConfig(ModelConfig):
    """Options of both xLSTM families: document resets and n-gram embedding tables."""

    reset_at_document_boundaries: bool = option(False, "reset the state at every bos_token_id")
    ngram_orders: tuple[int, ...] = custom(
        "n-gram embedding tables, such as 2-8; []: none", (), ngrams.read_orders
    )
    ngram_dim: int = positive("width of these tables", 32, high=ngrams.MAX_DIM)
    ngram_rows: int = positive(
        "most rows of one; more n-grams share rows by a hash", 131072, high=ngrams.MAX_ROWS
    )

    def __post_init__(self) -> None:
        """Refuse a field out of range, and resets without their token."""
        super().__post_init__()
        rows, bos, V = self.ngram_rows, self.bos_token_id, self.vocab_size
        if rows < 2 or rows & (rows - 1):
            most = ngrams.MAX_ROWS.bit_length() - 1
            raise ConfigError(
                f"ngram_rows is {rows}; set it to a power of two up to 2^{most}, such as 131072"
            )
        if self.reset_at_document_boundaries and (bos is None or not 0 <= bos < V):
            token = "not set" if bos is None else f"{bos} of {V} ids"
            raise ConfigError(
                f"reset_at_document_boundaries is true and bos_token_id is {token}; "
                "set bos_token_id to the token that begins every document"
            )

    def embedding_and_head(self, embedding: str, *, decay: bool = False) -> dict[str, Any]:
        """Declare the embedding, the n-gram tables and the head of the layout."""
        tied, shape = self.tie_word_embeddings, (self.vocab_size, self.hidden_size)
        init = small(self.hidden_size)
        head = ParamSpec(self.untied_head, shape, init, decay=True, autocast=True)
        # A tied embedding has a dense gradient, as the head.
        return {
            "embedding": ParamSpec(embedding, shape, init, "dense" if tied else "rows", decay),
            "ngrams": ngrams.param_spec(self),
            "head": () if tied else (head,),
        }

    def values(self) -> dict[str, Any]:
        """Return every field but `extra`; those of n-gram tables only if there are any."""
        hidden = () if self.ngram_orders else ngrams.FIELDS
        return {k: v for k, v in super().values().items() if k not in hidden}


def state_shapes(cfg: ModelConfig) -> list[tuple[tuple[int, ...], ...]]:
    """Return the shapes of every block's state for one sequence, before the first position."""
    return [sum((part.state_shapes for part in block), ()) for block in cfg.layout.blocks]


def init_state(cfg: ModelConfig, B: int, xp: Arrays, like: Array | None = None) -> State:
    """Return the initial state of B sequences: zeros, and absent ids."""
    tables, absent = ngrams.of(cfg), ngrams.ABSENT
    ids = () if tables is None else (xp.full((B, tables.context), absent, "int32", like=like),)
    blocks = [
        tuple(
            xp.zeros((B, *shape), "int32" if name == "count" else "float32", like=like)
            for part in block
            for name, shapes in part.layer.state_shapes(part.d, 0).items()
            for shape in shapes
        )
        for block in cfg.layout.blocks
    ]
    return [ids, *blocks] if ids else blocks


def blocks(
    cfg: ModelConfig, params: Params, x: Array, state: State | None, ctx: ForwardContext
) -> tuple[Array, State]:
    """Compute from the embedded tokens (B, S, d) to the final norm; return x and the new state.

    The new state is empty with `ctx.recompute`: it would be kept for the backward pass.
    """
    layout, after = cfg.layout, list[tuple[Array, ...]]()
    ctx.note(x)
    x = ctx.at(layout.embedding.name).drop(x)
    for number, block in enumerate(layout.blocks):
        before = None if state is None else state[number]
        if ctx.recompute:
            x = recomputed_block(cfg, block, params, x, before, ctx)
        else:
            x, end = run_block(cfg, block, params, x, before, ctx)
            after.append(end)
        ctx.note(x)
    if layout.out_norm:
        x = norm(cfg, params, layout.out_norm[0].name.removesuffix(".weight"), x, ctx)
        ctx.note(x)
    return x, after


def run_block(
    cfg: ModelConfig, block: Block, params: Params, x: Array, state: tuple[Array, ...] | None,
    ctx: ForwardContext, *, unread: bool = False,
) -> tuple[Array, tuple[Array, ...]]:  # fmt: skip
    """Return x after one block, and the block's state after the last position.

    With `unread` gradients alone are used: the last linear layer need not be computed.
    """
    after: tuple[Array, ...] = ()
    for part in block:
        if unread and part is block[-1]:
            ctx = replace(ctx, unread=part.layer.output_projection)
        u = norm(cfg, params, part.norm, x, ctx) if part.norm else x
        y, end = part.forward(params, u, state, ctx)
        x, state, after = x + y if part.norm else y, None, (*after, *end)
    return x, after


def recomputed_block(
    cfg: ModelConfig, block: Block, params: Params, x: Array, state: tuple[Array, ...] | None,
    ctx: ForwardContext,
) -> Array:  # fmt: skip
    """Return x after one block; the backward pass computes the block again from its inputs.

    Masks of documents and dropout are constants. Source: Chen et al. 2016, arXiv:1604.06174.
    """
    own = {s.name: params[s.name] for part in block for s in cfg.layout.part_spec(part)}
    frozen = {name: w for name, w in own.items() if is_frozen(w)}
    names, states = [name for name in own if name not in frozen], () if state is None else state
    weights = [own[name] for name in names]
    of_matmuls = [isinstance(w, MatmulWeight) for w in weights]

    def run(x: Array, *rest: Array, unread: bool = False) -> Array:
        pairs = zip(rest[len(states) :], of_matmuls, strict=True)
        marked = (MatmulWeight(w) if is_marked else w for w, is_marked in pairs)
        weights = frozen | dict(zip(names, marked, strict=True))
        before = state and rest[: len(states)]
        y, _ = run_block(cfg, block, weights, x, before, ctx, unread=unread)
        return y

    pairs = zip(weights, of_matmuls, strict=True)
    inputs = (x, *states, *(w.array if is_marked else w for w, is_marked in pairs))
    again = partial(run, unread=True)
    return ctx.ops.xp.recompute(run, again, *inputs, evaluates=ctx.ops.evaluates)


def norm(cfg: ModelConfig, params: Params, name: str, x: Array, ctx: ForwardContext) -> Array:
    """Return the norm `name` of x (..., d)."""
    w = params[f"{name}.weight"]
    if cfg.layout.norms[0] == "layer":
        return ctx.ops.layer_norm(x, 1.0 + w, cfg.norm_eps)
    y, bias = ctx.ops.rms_norm(x, w, cfg.norm_eps), params.get(f"{name}.bias")
    return y if bias is None else y + bias
