"""Stacks of xLSTM layers, for arrays of any framework.

The equations are those of the language models: `models/xlstm_v1/model.py` for the variant "v1", the
layers of the first paper, and `models/xlstm_large/model.py` for "large", the layers of xLSTM-7B.
Parameters have the names and layouts of the xlstm package:

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

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from mlxhog.errors import ConfigError, ShapeError
from mlxhog.models import xlstm_large, xlstm_v1
from mlxhog.models.forward_pass import Pass
from mlxhog.models.ops.arrays import Array
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import ParamSpec
from mlxhog.models.translation import to_ours
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from mlxhog.nn.padding import SkippingForm, find_positions

Cell = Literal["mlstm", "slstm"]
State: TypeAlias = Sequence[Sequence[Array]]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Layers of one kind, each the input of the next.

    Attributes:
        cfg: the language model that has these layers.
        cell: of the layers.
        blocks: numbers of the model's blocks.
        whole_blocks: whether a layer is a block with its norms and residuals, or the cell's layer
            in it.
        input_size: width of the input.
        batch_first: whether arrays are (B, S, width); else (S, B, width).
        kernels: form of the operators; see `models.ops.kernels.resolve`.
    """

    cfg: XLSTMV1Config | XLSTMLargeConfig
    cell: Cell
    blocks: tuple[int, ...]
    whole_blocks: bool
    input_size: int
    batch_first: bool
    kernels: str

    @property
    def width(self) -> int:
        """Width of the output."""
        return self.cfg.hidden_size

    @cached_property
    def names(self) -> dict[str, str]:
        """Prefix of a layer's parameters here -> prefix in the model."""
        one = len(self.blocks) == 1
        if isinstance(self.cfg, XLSTMLargeConfig):
            prefixes, inner = map(xlstm_large.block_name, self.blocks), "mlstm_layer."
        else:
            prefixes, inner = map(xlstm_v1.block_name, self.blocks), "xlstm."
        inner = "" if self.whole_blocks else inner
        return {
            "" if one else f"layers.{k}.": f"{prefix}.{inner}" for k, prefix in enumerate(prefixes)
        }

    @cached_property
    def parameters(self) -> dict[str, ParamSpec]:
        """Parameters by their names here; a `ParamSpec` has the name in the model."""
        if isinstance(self.cfg, XLSTMLargeConfig):
            specs = list(xlstm_large.param_spec(self.cfg).values())
        else:
            of_block, name = xlstm_v1.model.block_spec, xlstm_v1.block_name
            specs = [s for block in self.blocks for s in of_block(self.cfg, block, name(block))]
        parameters = dict[str, ParamSpec]()
        if self.input_size != self.width:
            bound = f"uniform:{self.input_size**-0.5!r}"
            shape = (self.width, self.input_size)
            parameters["input_proj.weight"] = ParamSpec("input_proj.weight", shape, bound)
            parameters["input_proj.bias"] = ParamSpec("input_proj.bias", shape[:1], bound)
        for here, there in self.names.items():
            for spec in specs:
                if spec.name.startswith(there):
                    parameters[here + spec.name.removeprefix(there)] = spec
        return parameters

    @cached_property
    def state_shapes(self) -> list[tuple[tuple[int, ...], ...]]:
        """Shapes of every layer's state, for one row."""
        if isinstance(self.cfg, XLSTMLargeConfig):
            shapes = xlstm_large.model.state_shapes(self.cfg)
        else:
            shapes = xlstm_v1.model.state_shapes(self.cfg)
        return [shapes[block] for block in self.blocks]

    @cached_property
    def dropout_sites(self) -> dict[str, tuple[int, float]]:
        """Width and rate of dropout by the name of its place."""
        if isinstance(self.cfg, XLSTMLargeConfig):
            return {}
        prefixes = tuple(f"{xlstm_v1.block_name(block)}." for block in self.blocks)
        sites = xlstm_v1.dropout_sites(self.cfg)
        return {site: what for site, what in sites.items() if site.startswith(prefixes)}

    def describe(self) -> str:
        """Return a description of these layers for the `repr` of a module."""
        parts = [f"{self.input_size}, {self.width}, layers={len(self.blocks)}"]
        if self.whole_blocks:
            parts.append(f"cell={self.cell!r}")
        if self.cell == "mlstm":
            parts.append(f"variant={'large' if self.cfg.model_type == 'xlstm' else 'v1'!r}")
        return ", ".join([*parts, f"batch_first={self.batch_first}"])

    def translate(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a state dict of the xlstm package in the layout here.

        Its CUDA sLSTM has transposed weights, and weight_mode "fused" stacks matrices; see
        `models/translation.py`. Unknown names stay as they are.
        """
        there = {self._renamed(name, self.names): array for name, array in arrays.items()}
        back = {prefix: here for here, prefix in self.names.items()}
        return {self._renamed(k, back): v for k, v in to_ours(there, self.cfg).items()}

    @staticmethod
    def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
        for old, new in prefixes.items():
            if name.startswith(old) and not name.startswith("input_proj."):
                return new + name.removeprefix(old)
        return name

    def check(
        self,
        x: Array,
        state: State | None,
        params: Mapping[str, Array],
        float32: object,
        conversion: str,
    ) -> None:
        """Refuse arrays that do not fit these layers.

        Args:
            x: as of `forward`.
            state: as of `forward`.
            params: as of `forward`.
            float32: this type in the framework.
            conversion: code that converts an array to it.

        Raises:
            ShapeError: the input or the state has another shape.
            ConfigError: an array is not float32, or a part of the state is on another device.
        """
        form = f"({'B, S' if self.batch_first else 'S, B'}, {self.input_size})"
        form = f"{form}, batch_first={self.batch_first}, or one sequence (S, {self.input_size})"
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            raise ShapeError(f"the input has shape {tuple(x.shape)}; give it as {form}")
        *rows, S = x.shape[:-1] if self.batch_first or x.ndim == 2 else x.shape[1::-1]
        if S == 0:
            raise ShapeError(
                f"the input has shape {tuple(x.shape)}, which is 0 positions, but it needs at "
                "least 1; skip the call"
            )
        for name, array in {"the input": x, **params}.items():
            if array.dtype != float32:
                raise ConfigError(
                    f"{name} is {array.dtype}, but these layers compute in float32; give it as "
                    f"{conversion}"
                )
        if state is None:
            return
        expected = [[(*rows, *shape) for shape in layer] for layer in self.state_shapes]
        if _shapes(state) != expected:
            raise ShapeError(
                f"the state is {_description(state)}, but this module needs one tuple per layer, "
                f"{_description(expected)}; give the state that it returned for the same rows, or "
                "None"
            )
        for array in (part for layer in state for part in layer):
            if array.dtype != float32 or getattr(array, "device", 0) != getattr(x, "device", 0):
                raise ConfigError(
                    f"the state is {_type(array)}, and the input {_type(x)}; give the state that "
                    f"this module returned for the same rows, as {conversion} on the input's device"
                )

    def forward(
        self,
        params: Mapping[str, Array],
        x: Array,
        state: State | None,
        *,
        lengths: object = None,
        mask: object = None,
        **how: Any,
    ) -> tuple[Array, tuple[tuple[Array, ...], ...]]:
        """Run the layers over checked arrays.

        Args:
            params: by the names of `parameters`.
            x: (B, S, input_size), (S, B, input_size) without `batch_first`, or (S, input_size), one
                sequence, whose state and output have no axis of rows either.
            state: before the first position; None is zeros.
            lengths: as of `find_positions`, readable by NumPy.
            mask: likewise.
            **how: the other arguments of `_rows`.

        Returns:
            y, as x but of width `width`, 0 at padding, and the state after the last position that
            counts.

        Raises:
            ShapeError, ConfigError: see `find_positions`.
        """
        if x.ndim == 3:
            rows = x if self.batch_first else x.swapaxes(0, 1)
            y, last = self._rows(params, rows, state, lengths=lengths, mask=mask, **how)
            return y if self.batch_first else y.swapaxes(0, 1), last
        if lengths is not None or mask is not None:
            raise ConfigError(
                "an input (S, width) is one sequence, whose positions all count; leave lengths and "
                "mask out, or give it an axis of rows"
            )
        if state is not None:
            state = [[part[None] for part in layer] for layer in state]
        y, last = self._rows(params, x[None], state, lengths=None, mask=None, **how)
        return y[0], tuple(tuple(part[0] for part in layer) for layer in last)

    def _rows(
        self,
        params: Mapping[str, Array],
        x: Array,
        state: State | None,
        *,
        ops: Ops,
        lengths: object,
        mask: object,
        reverse: bool,
        drop: Callable[[tuple[int, ...], float], Array] | None,
    ) -> tuple[Array, tuple[tuple[Array, ...], ...]]:
        """Run the layers over x (B, S, input_size).

        Args:
            params: as of `forward`.
            x: the batch.
            state: as of `forward`.
            ops: the operators.
            lengths: as of `forward`.
            mask: as of `forward`.
            reverse: as of `find_positions`.
            drop: (shape, rate) -> an array of 0 and 1 / (1 - rate); None outside of training.

        Returns:
            As `forward`.
        """
        B, S, _ = x.shape
        if B == 0:  # with gradients, which are zeros
            y = ops.xp.zeros((0, S, self.width), like=x) + x[..., :1]
            shapes = ([(0, *shape) for shape in layer] for layer in self.state_shapes)
            last = tuple(tuple(ops.xp.zeros(s, like=x) for s in layer) for layer in shapes)
            return y + sum(p.sum() for p in params.values()), last
        positions = find_positions(B, S, lengths=lengths, mask=mask, reverse=reverse)
        masks: dict[str, Array] = {}
        if drop is not None:
            for site, (width, rate) in self.dropout_sites.items():
                masks[site] = drop((B, S, width), rate)
        xp, padded = ops.xp, None
        if positions is not None:
            x = positions.sort(x, xp)
            skipping = SkippingForm(ops.form, positions.lengths, x)
            ops, padded = Ops(skipping), skipping.padded[..., None]
            x = xp.where(padded, 0.0, x)
        if self.input_size != self.width:
            weight, bias = params["input_proj.weight"], params["input_proj.bias"]
            (x,) = ops.linears(x, [weight], [bias])
        run: Pass[Array] = Pass(ops, masks=masks or None)
        named = {spec.name: params[name] for name, spec in self.parameters.items()}
        after = []
        for k, block in enumerate(self.blocks):
            before = None if state is None else tuple(state[k])
            x, end = self._layer(block)(named, x, before, run)
            after.append(end)
        if positions is not None:
            x = positions.unsort(xp.where(padded, 0.0, x), xp)
        return x, tuple(after)

    def _layer(self, block: int) -> Callable[..., tuple[Array, tuple[Array, ...]]]:
        """Return the function (params, x, state, run) -> y, state of a block or its layer."""
        if isinstance(self.cfg, XLSTMLargeConfig):
            cfg, large = self.cfg, xlstm_large.model
            if self.whole_blocks:
                return lambda params, *rest: large.block(cfg, params, block, *rest)
            p = f"{xlstm_large.block_name(block)}.mlstm_layer"
            return lambda params, *rest: large.mlstm_layer(cfg, params, p, *rest)
        v1_cfg, v1, name = self.cfg, xlstm_v1.model, xlstm_v1.block_name(block)
        if self.whole_blocks:
            of_block = v1.slstm_block if self.cell == "slstm" else v1.mlstm_block
            return lambda params, *rest: of_block(v1_cfg, params, name, *rest)
        of_layer = v1.slstm_layer if self.cell == "slstm" else v1.mlstm_layer
        return lambda params, *rest: of_layer(v1_cfg, params, f"{name}.xlstm", *rest)


class LikeLSTM:
    """The attributes of `nn.LSTM` that programs read, for modules of either framework."""

    stack: Stack
    bidirectional = False
    proj_size = 0

    @property
    def input_size(self) -> int:
        """Width of the input."""
        return self.stack.input_size

    @property
    def hidden_size(self) -> int:
        """Width of the output."""
        return self.stack.width

    @property
    def num_layers(self) -> int:
        """Number of layers, each the input of the next."""
        return len(self.stack.blocks)

    @property
    def batch_first(self) -> bool:
        """Whether arrays are (B, S, width)."""
        return self.stack.batch_first

    @property
    def dropout(self) -> float:
        """Rate of dropout."""
        return float(getattr(self.stack.cfg, "dropout", 0.0))


def _shapes(state: Any) -> object:
    """Return the shapes of a state's arrays; None for what is no tuple of tuples of arrays."""
    if not isinstance(state, tuple | list) or not all(isinstance(x, tuple | list) for x in state):
        return None
    return [[tuple(getattr(part, "shape", ("no array",))) for part in layer] for layer in state]


def _description(x: Any) -> str:
    """Return the tuples of a state with the shapes of their arrays."""
    if isinstance(x, tuple | list):
        return f"({', '.join(map(_description, x))}{',' * (len(x) == 1)})"
    return str(tuple(x.shape)) if hasattr(x, "shape") else f"{x!r:.40}"


def _type(x: Array) -> str:
    """Return the type of an array, and its device if it has one."""
    return f"{x.dtype} on {x.device}" if hasattr(x, "device") else str(x.dtype)


def check_directions(forwards: Stack, backwards: Stack) -> None:
    """Refuse two stacks that differ in `batch_first`.

    Raises:
        ConfigError: they differ.
    """
    if forwards.batch_first != backwards.batch_first:
        raise ConfigError("one of the two is batch_first, the other is not; use the same for both")


def both_directions(
    forwards: Callable[..., Any],
    backwards: Callable[..., Any],
    x: Any,
    state: Sequence[Any] | None,
    positions: Mapping[str, Any],
) -> tuple[Any, Any, tuple[Any, Any]]:
    """Run one module over x forwards and another backwards.

    Returns:
        The output of each, and their states as a pair.
    """
    first, second = state or (None, None)
    there, end = forwards(x, first, **positions)
    back, begin = backwards(x, second, reverse=True, **positions)
    return there, back, (end, begin)
