"""Stacks of xLSTM layers, and the base classes of their modules in PyTorch and MLX.

The layers are those of the language models, `models/layers/xlstm.py`: the variant "v1" has the
layers of the first paper, "large" those of xLSTM-7B. Parameters have the names and layouts of the
xlstm package:

    one layer                    conv1d.conv.weight, ...
    several                      layers.0.conv1d.conv.weight, ..., layers.1.conv1d.conv.weight, ...
    input_size != hidden_size    input_proj.weight (hidden_size, input_size), input_proj.bias before

A state is a tuple with one entry per layer, a tuple of float32 arrays with rows first:

    SLSTM            last inputs of the convolution (B, K - 1, d), if there is one;
                     h, c, n, m (B, NH, DH) each
    MLSTM, v1        last inputs of the convolution (B, K - 1, I), C (B, NH, DK, DV), n (B, NH, DK),
                     m (B, NH)
    MLSTM, large     C, n, m
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from mlxhog.backends.inference import check_tokens
from mlxhog.checkpoint import formats
from mlxhog.errors import ConfigError, ShapeError, did_you_mean, shown
from mlxhog.models import families, lm, model
from mlxhog.models.checkpoint_names import to_ours
from mlxhog.models.families import ModelConfig
from mlxhog.models.fields import described
from mlxhog.models.layers.layer import ForwardContext, linear_params
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.ops.operators import Ops
from mlxhog.models.registry import load_architecture
from mlxhog.models.spec import ParamSpec
from mlxhog.models.xlstm_v1 import MLSTMLayerConfig, SLSTMLayerConfig
from mlxhog.nn.padding import SkippingOps, gather

State = Sequence[Sequence[Any]]

MAX_VALUE = 1e18
"""Larger inputs of a layer count as infinite: the products of two overflow in its sums."""

OPTIONS = {
    ("mlstm", "v1"): [*described(MLSTMLayerConfig), "chunk_size", "bias"],
    ("slstm", "v1"): [*described(SLSTMLayerConfig)],
    ("mlstm", "large"): [
        "num_heads", "chunk_size", "use_bias", "qk_dim_factor", "v_dim_factor", "gate_soft_cap",
        "norm_eps", "eps", "zero_init_residual",
    ],
}  # fmt: skip
"""Options of a layer, by cell and variant."""

BLOCK_OPTIONS = {
    ("slstm", "v1"): ["feedforward"],
    ("mlstm", "large"): ["ffn_proj_factor", "ffn_round_up_to_multiple_of"],
}
"""Options that only a block has."""


class Stack:
    """Some blocks of a language model, one after another.

    With `whole_blocks` a layer has norms and residuals, otherwise it is the mixer alone.
    """

    def __init__(
        self, cfg: ModelConfig, blocks: Sequence[int], input_size: int, whole_blocks: bool = False
    ) -> None:
        if input_size < 1:
            raise ConfigError(f"input_size is {input_size}; set it to the width of the input")
        self.cfg, self.input_size = cfg, input_size
        self.blocks = [cfg.layout.blocks[n] for n in blocks]
        if not whole_blocks:
            self.blocks = [(replace(cell, norm=""),) for cell, *_ in self.blocks]
        names = [block[0].name for block in self.blocks]
        names = [name.rpartition(".")[0] for name in names] if whole_blocks else names
        here = ["" if len(names) == 1 else f"layers.{k}." for k in range(len(names))]
        self._names = dict(zip(here, (f"{name}." for name in names), strict=True))
        self.state_shapes = [model.state_shapes(cfg)[n] for n in blocks]

    @cached_property
    def parameters(self) -> dict[str, ParamSpec]:
        """Parameters by their names in the module; a `ParamSpec` has the name in the model."""
        width, parameters = self.cfg.hidden_size, dict[str, ParamSpec]()
        if self.input_size != width:
            specs = linear_params(self.input_size, bias=True, input_proj=width)
            parameters = {spec.name: spec for spec in specs}
        for here, there in self._names.items():
            for spec in self.cfg.layout.spec.values():
                if spec.name.startswith(there):
                    parameters[here + spec.name.removeprefix(there)] = spec
        return parameters

    def translate(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Convert a state dict of the xlstm package to the names and layouts here.

        Its CUDA sLSTM has transposed weights, and weight_mode "fused" stacks matrices; see
        `models/checkpoint_names.py`. Unknown names stay as they are.
        """
        there = {_renamed(name, self._names): array for name, array in arrays.items()}
        back = {prefix: here for here, prefix in self._names.items()}
        return {_renamed(k, back): v for k, v in to_ours(there, self.cfg).items()}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old) and not name.startswith("input_proj."):
            return new + name.removeprefix(old)
    return name


def _config(
    cell: str, variant: str, width: int, n: int, dropout: float, options: Mapping[str, Any],
    whole_blocks: bool = False,
) -> ModelConfig:  # fmt: skip
    """Return the config of a language model of n blocks with these layers."""
    if (cell, variant) not in OPTIONS:
        raise ConfigError(
            f"cell {cell!r} of variant {variant!r} does not exist; choose mlstm or slstm of v1, "
            "the first paper's, or mlstm of large, that of xLSTM-7B"
        )
    known = OPTIONS[cell, variant] + whole_blocks * BLOCK_OPTIONS.get((cell, variant), [])
    for name, value in options.items():
        if name not in known:
            near = did_you_mean(name, known) or f"; its options are {', '.join(known)}"
            kind = f"{cell} {'block' if whole_blocks else 'layer'} of variant {variant}"
            raise ConfigError(f"{name} is {shown(value)}, but the {kind} has no such option{near}")
    own = dict(options)
    if variant == "large":
        if dropout:
            raise ConfigError(f"dropout is {dropout}, but xLSTM Large has none; use variant v1")
        own = {"model_type": "xlstm", "num_heads": 4, **own}
    else:
        outer: dict[str, Any] = {k: own.pop(k) for k in ("bias", "chunk_size") if k in own}
        ffn = own.pop("feedforward", {}) if whole_blocks else None
        block: dict[str, Any] = {cell: own}
        if cell == "slstm":
            block["feedforward"] = None if ffn is None else {"dropout": dropout, **ffn}
        at = [*range(n)] if cell == "slstm" else []
        own = {"model_type": "xlstm_v1", "dropout": dropout, "slstm_at": at, f"{cell}_block": block}
        own |= outer
    sizes = {"vocab_size": 1, "hidden_size": width, "num_hidden_layers": n}
    cfg = families.read(sizes | own, strict=True)
    if cfg.extra:
        raise ConfigError(f"options without an effect here: {cfg.extra}; leave them out")
    return cfg


class LayersBase:
    """The part of a module that both frameworks share; a framework's class follows it in the MRO.

    The modules have these arguments:

        input_size      a width other than `hidden_size` adds a linear layer before the first layer
        hidden_size     width of the output; the cell's heads have to divide it
        num_layers      layers, each the input of the next
        batch_first     (B, S, width), or (S, B, width); the default is that of `nn.LSTM` in
                        PyTorch, false, and true in MLX
        dropout         rate of units that are zeroed in training, where the package does
        kernels         "auto" for the fastest, "eager" for the framework's own operations
        variant         "v1" for the layers of the first paper, "large" for those of xLSTM-7B
        options         fields of the package's configuration of the layer

    A size that does not divide, or an option that is unknown or out of range, is a `ConfigError`.
    """

    start: Callable[[], None]  # creates the parameters; a framework's class has these three
    arrays: Callable[[Any], tuple[Mapping[str, Array], Ops]]
    """The parameters by the names of `Stack.parameters`, and operators for an input."""
    drop: Callable[[tuple[int, ...], float, Any], Array]
    """(shape, rate, an array on the device) -> a dropout mask of 0 and 1 / (1 - rate)."""
    training: bool
    batch_first: bool

    def _set(self, stack: Stack, batch_first: bool | None, kernels: str) -> None:
        self.stack, self.kernels, self.num_layers = stack, kernels, len(stack.state_shapes)
        self.input_size, self.hidden_size = stack.input_size, stack.cfg.hidden_size
        if batch_first is not None:
            self.batch_first = batch_first
        self.start()

    def forward(
        self, x: Any, state: State | None = None, *, lengths: Any = None, mask: Any = None
    ) -> tuple[Any, Any]:
        """Run the layers over a batch.

        Args:
            x: (S, B, input_size), or (B, S, input_size) if `batch_first`, float32; or one sequence
                (S, input_size), whose state has no axis of rows.
            state: result of an earlier call for the same rows; None is zeros.
            lengths: (B,), number of valid positions of each row; those after them are padding.
            mask: (B, S), true or 1 at valid positions, anywhere in the row.

        Returns:
            The output, like x but of width `hidden_size` and 0 at padding; and the state of every
            row after its last valid position. From the first position of a row on where the
            input of a layer is not finite, or above `MAX_VALUE`, the output is NaN, and the state
            of that layer and of the next ones is that of zeros in its place.

        Raises:
            ShapeError: x, state, lengths or mask have another shape.
            ConfigError: a type other than float32, or a length out of range.
        """
        width, batched = self.input_size, x.ndim == 3
        if x.ndim not in (2, 3) or x.shape[-1] != width or 0 in x.shape:
            raise ShapeError(
                f"the input has shape {tuple(x.shape)}; give it as "
                f"({'B, S' if self.batch_first else 'S, B'}, {width}), "
                f"batch_first={self.batch_first}, or one sequence (S, {width}), "
                "with at least one row and position"
            )
        swapped = batched and not self.batch_first
        x = x.swapaxes(0, 1) if swapped else x if batched else x[None]
        B, S, _ = x.shape
        if state is not None:
            rows = (B,) if batched else ()
            expected = [[(*rows, *one) for one in layer] for layer in self.stack.state_shapes]
            if (shapes := _shapes(state)) != expected:
                raise ShapeError(
                    f"the state has shapes {shapes}, but this module needs {expected}; give the "
                    "state that it returned for the same rows, or None"
                )
            if not batched:
                state = [[part[None] for part in layer] for layer in state]
        y, last = self._run(x, state, _validity(B, S, lengths, mask))
        if not batched:
            return y[0], tuple(tuple(part[0] for part in layer) for layer in last)
        return y.swapaxes(0, 1) if swapped else y, last

    def _run(
        self, x: Array, state: State | None, is_valid: NDArray[np.bool_] | None
    ) -> tuple[Array, tuple[tuple[Array, ...], ...]]:
        """Run the layers on x (B, S, input_size), all of it or its valid positions (B, S)."""
        (params, ops), stack = self.arrays(x), self.stack
        states = [("the state", part) for layer in state or () for part in layer]
        for name, array in [("the input", x), *params.items(), *states]:
            if not str(array.dtype).endswith("float32"):
                raise ConfigError(
                    f"{name} is {array.dtype}, but these layers compute in float32; convert it"
                )
        parts = [part for block in stack.blocks for part in block if part.dropout]
        parts = parts if self.training else []
        masks = {p.name: self.drop((*x.shape[:2], p.d), p.dropout, x) for p in parts}
        xp, order, padded = ops.xp, None, None
        if is_valid is not None:
            order = np.argsort(~is_valid, axis=1, kind="stable")  # valid ones first
            x = gather(x, order, xp)
            ops = cast(Ops, skipping := SkippingOps(ops, is_valid.sum(1), x))
            padded = skipping.padded[..., None]
            x = xp.where(padded, 0.0, x)
        n_wrong: Array = 0.0  # (B, S), values up to there that are not finite

        def finite(x: Array) -> Array:
            # A matmul of a chunk would carry NaN back to earlier positions: 0 times NaN is NaN.
            nonlocal n_wrong
            wrong = xp.where(xp.abs(x) < MAX_VALUE, 0.0, 1.0).sum(-1)
            n_wrong = n_wrong + xp.cumsum(wrong, 1)
            return xp.where((n_wrong > 0)[..., None], 0.0, x)

        x = finite(x)
        ctx = ForwardContext(ops, stack.cfg.norm_eps, masks=masks or None)
        if "input_proj.weight" in params:
            x = finite(ctx.linear(x, params, "input_proj"))
        by_model_name = {spec.name: params[name] for name, spec in stack.parameters.items()}
        after = []
        for k, block in enumerate(stack.blocks):
            before = None if state is None else tuple(state[k])
            x = finite(x) if k else x
            x, end = model.run_block(stack.cfg, block, by_model_name, x, before, ctx)
            after.append(end)
        x = xp.where((n_wrong > 0)[..., None], math.nan, x)
        if order is not None:
            x = gather(xp.where(padded, 0.0, x), np.argsort(order, axis=1), xp)
        return x, tuple(after)


class Recurrent(LayersBase):
    """Layers of one cell in place of `nn.LSTM`; for arguments see `LayersBase`."""

    cell: ClassVar[str]

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, *, variant: str = "v1",
        batch_first: bool | None = None, dropout: float = 0.0, kernels: str = "auto",
        **options: Any,
    ) -> None:  # fmt: skip
        """Make the layers; the class names their options."""
        cfg = _config(self.cell, variant, hidden_size, num_layers, dropout, options)
        self._set(Stack(cfg, range(num_layers), input_size), batch_first, kernels)


class SLSTMBase(Recurrent):
    """sLSTM layers where `nn.LSTM` stands: the package's sLSTMLayer.

    Its output is normalized within each head, so no norm has to follow. Options are `num_heads`
    (4), `conv1d_kernel_size` (4; 0 for none), `bias_init`, `recurrent_weight_init` and
    `group_norm_weight`.
    """

    cell = "slstm"


class MLSTMBase(Recurrent):
    """mLSTM layers where `nn.LSTM` stands: the package's mLSTMLayer.

    The variant "v1" widens its input and has a convolution. Options are `num_heads` (4) and
    `chunk_size`, which changes only the speed; of "v1" `conv1d_kernel_size`, `qkv_proj_blocksize`,
    `proj_factor`, `round_proj_up_dim_up`, `round_proj_up_to_multiple_of` and `bias`; of "large"
    `use_bias`, `qk_dim_factor`, `v_dim_factor`, `gate_soft_cap`, `norm_eps`, `eps` and
    `zero_init_residual`.
    """

    cell = "mlstm"


class XLSTMBlockBase(LayersBase):
    """One block of an xLSTM: norm, layer and residual, and a feed-forward layer if it has one.

    The package's mLSTMBlock or sLSTMBlock; with `variant="large"` the block of xLSTM-7B.
    """

    def __init__(
        self, hidden_size: int, *, cell: str = "mlstm", variant: str = "v1", index: int = 0,
        of: int = 1, batch_first: bool | None = None, dropout: float = 0.0, kernels: str = "auto",
        **options: Any,
    ) -> None:  # fmt: skip
        """Make block `index` of a model of `of` blocks, on which initial values depend.

        The cell is "mlstm" or "slstm"; the other arguments are as of `LayersBase`. Options are
        those of `SLSTM` or `MLSTM`; and `feedforward` of an sLSTM block, the fields of the
        package's FeedForwardConfig, or None for no such layer; and `ffn_proj_factor` and
        `ffn_round_up_to_multiple_of` of "large".
        """
        if not 0 <= index < of:
            raise ConfigError(f"block {index} of {of} does not exist; count blocks from 0")
        cfg = _config(cell, variant, hidden_size, of, dropout, options, whole_blocks=True)
        stack = Stack(cfg, (index,), hidden_size, whole_blocks=True)
        self._set(stack, batch_first, kernels)


def _shapes(state: Any) -> object:
    """Return the shapes of a state's arrays in its structure; the type's name for other objects."""
    if isinstance(state, tuple | list):
        return [_shapes(part) for part in state]
    return tuple(state.shape) if hasattr(state, "shape") else type(state).__name__


def _validity(B: int, S: int, lengths: Any, mask: Any) -> NDArray[np.bool_] | None:
    """Return which positions are valid, (B, S); None if all are."""
    if lengths is None and mask is None:
        return None
    if lengths is not None and mask is not None:
        raise ConfigError("lengths and mask both select positions; give one of them")
    name, x = ("mask", mask) if lengths is None else ("lengths", lengths)
    x = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    shape, last = ((B, S), 1) if lengths is None else ((B,), S)
    if x.shape != shape:
        raise ShapeError(f"{name}: shape {x.shape}, but the batch needs {shape}, rows first")
    if not np.isin(x, np.arange(last + 1)).all():
        raise ConfigError(f"{name}: {x.tolist()} has values that are no integers from 0 to {last}")
    is_valid = x.astype(bool) if lengths is None else np.arange(S) < x[:, None]
    return None if is_valid.all() else is_valid


def read_model(
    source: str | Path | ModelConfig, seed: int
) -> tuple[ModelConfig, dict[str, NDArray[np.float32]]]:
    """Return a language model and its parameters: of a checkpoint's directory, else initial ones.

    Raises:
        ConfigError: no such model; or it is no language model of tokens alone.
        CheckpointError: the weights of a checkpoint do not fit.
    """
    if isinstance(source, str | Path) and Path(source).is_dir():
        checkpoint = formats.open(Path(source)).merged()
        cfg, spec = checkpoint.config, families.param_spec(checkpoint.config)
        values = {name: np.empty(one.shape, np.float32) for name, one in spec.items()}
        checkpoint.copy_into(values)
    else:
        cfg = load_architecture(source) if isinstance(source, str | Path) else source
        values = families.init_params(cfg, seed)
    families.check_language_model(cfg)
    return cfg, values


def check_input(cfg: ModelConfig, tokens: Array, state: Any, xp: Arrays) -> None:
    """Refuse tokens (B, S) that a language model cannot read after a state.

    Tokens that are traced, as in `mx.compile` and `vmap`, have no values to check.

    Raises:
        DataError: there is no token, or a token is outside the vocabulary.
        ConfigError: there are more tokens than the model has positions.
    """
    count = 0
    with suppress(ValueError, RuntimeError):  # of a traced array in MLX and in PyTorch
        check_tokens(xp.numpy(tokens), cfg.vocab_size)
        if cfg.position != "none" and state is not None:
            count = int(xp.numpy(state[0][0]).max())  # of tokens that were read before
    families.check_length(cfg, count + tokens.shape[1])


def draw_masks(
    cfg: ModelConfig, tokens: Array, drop: Callable[..., Array]
) -> dict[str, Array] | None:
    """Draw the dropout masks of a language model for tokens (B, S); `drop` is `LayersBase.drop`."""
    return {
        site: drop((*tokens.shape, width), rate, tokens)
        for site, (width, rate) in lm.dropout_sites(cfg).items()
    } or None
