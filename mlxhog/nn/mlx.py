"""xLSTM layers as modules of MLX.

    layer = SLSTM(16, 64)
    output, state = layer(x)                    # x (B, S, 16), output (B, S, 64)
    output, state = layer(more, state)          # continues after the last call
    output, state = layer(x, lengths=lengths)   # rows of different lengths

On a CPU the cells and the products around them run as native kernels, which evaluate their inputs.
So inside `mx.compile` and `mx.vmap` use `kernels="reference"`, operations of MLX. `set_threads`
sets the threads of native kernels. All numbers are float32.

MLX has no parameters whose names begin with an underscore: `_recurrent_kernel_` and `_bias_` of the
package's sLSTM cell are `recurrent_kernel` and `bias` here. `load_weights` reads both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias, Unpack, cast

import mlx.core as mx
import numpy as np
from mlx.core import array
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_unflatten

from mlxhog.models import lm
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.kernels import choose
from mlxhog.models.ops.native.adapter_mlx import set_threads
from mlxhog.models.spec import initial_value
from mlxhog.nn.language_model import opened
from mlxhog.nn.layers import LikeLSTM, Stack, both_directions, check_directions
from mlxhog.nn.options import (
    BlockOptions,
    Common,
    MLSTMOptions,
    SLSTMOptions,
    block_stack,
    mlstm_stack,
    slstm_stack,
)

State: TypeAlias = tuple[tuple[array, ...], ...]
"""One entry per layer, see `mlxhog/nn/layers.py`."""

Lengths: TypeAlias = array | list[int]

__all__ = ["MLSTM", "SLSTM", "Bidirectional", "LanguageModel", "XLSTMBlock", "set_threads"]


class Layers(LikeLSTM, Module):
    """Parameters and forward pass of all modules."""

    def __init__(self, stack: Stack) -> None:
        """Create the parameters of some layers; their values depend on `mx.random.seed`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack = stack
        seed = int(cast(int, mx.random.randint(0, 2**31 - 1).item()))
        specs = stack.parameters.items()
        values = [(_own(name), mx.array(initial_value(spec, seed))) for name, spec in specs]
        for name, branch in cast(dict[str, Any], tree_unflatten(values)).items():
            setattr(self, name, _modules(branch))

    def __call__(
        self,
        x: array,
        state: State | None = None,
        *,
        lengths: Lengths | None = None,
        mask: array | None = None,
        reverse: bool = False,
    ) -> tuple[array, State]:
        """Run the layers over a batch.

        Args:
            x: (B, S, input_size), float32; (S, B, input_size) unless `batch_first`; or one sequence
                (S, input_size), whose state has no axis of rows.
            state: result of an earlier call for the same rows; None is zeros.
            lengths: (B,), number of positions of each row that count, from the first; the others
                are padding.
            mask: (B, S), true at positions that count, anywhere in the row.
            reverse: read every row from its last position that counts to its first; the output
                keeps its positions, and the state is that after the first position.

        Returns:
            The output, like x but of width `hidden_size` and 0 at padding, and the state of every
            row after its last position that counts.

        Raises:
            ShapeError: x, state, lengths or mask have another shape.
            ConfigError: a type other than float32, or a length out of range.
        """
        tree: dict[str, array] = dict(tree_flatten(cast(Any, self).parameters()))
        params = {name: tree[_own(name)] for name in self.stack.parameters}
        self.stack.check(x, state, params, mx.float32, ".astype(mx.float32)")
        device = "cpu" if mx.default_device().type == mx.cpu else "gpu"
        return self.stack.forward(
            params,
            x,
            state,
            ops=choose("mlx", self.stack.kernels, device, guarded=True),
            lengths=lengths,
            mask=mask,
            reverse=reverse,
            drop=_drop if self.training else None,
        )

    def load_weights(self, file_or_weights: Any, strict: bool = True) -> Module:
        """Load parameters by name, like `mlx.nn.Module.load_weights`.

        Args:
            file_or_weights: a file of MLX or safetensors, or pairs of name and array, of MLX or
                NumPy; also a state dict of the xlstm package, in its layout.
            strict: whether to refuse missing and unknown names.
        """
        if isinstance(file_or_weights, str | Path):
            file_or_weights = list(cast(Any, mx.load(str(file_or_weights))).items())
        package = {_own(name): name for name in self.stack.parameters}
        arrays = {package.get(k, k): np.asarray(x, np.float32) for k, x in file_or_weights}
        own = [(_own(name), mx.array(x)) for name, x in self.stack.translate(arrays).items()]
        return super().load_weights(own, strict)

    def _extra_repr(self) -> str:
        return self.stack.describe()


class LanguageModel(Module):
    """A language model of any family, such as the winner of a search: tokens in, logits out."""

    def __init__(
        self, source: str | Path | ModelConfig, *, seed: int = 0, kernels: str = "auto"
    ) -> None:
        """Make the model; arguments and errors as of `mlxhog.nn.torch.LanguageModel`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.architecture, values = opened(source, seed)
        self.kernels = kernels
        self._names = {_own(name): name for name in values}
        tree = tree_unflatten([(_own(name), mx.array(value)) for name, value in values.items()])
        for name, branch in cast(dict[str, Any], tree).items():
            setattr(self, name, _modules(branch))

    def __call__(self, tokens: array, state: Any = None) -> tuple[array, Any]:
        """Return the logits (B, S, V) of tokens (B, S), and the state after the last position.

        Args:
            tokens: (B, S) integers in [0, V).
            state: result of an earlier call for the same rows; None is the start.
        """
        own: dict[str, array] = dict(tree_flatten(cast(Any, self).parameters()))
        params = {self._names[name]: value for name, value in own.items()}
        device = "cpu" if mx.default_device().type == mx.cpu else "gpu"
        ops = choose("mlx", self.kernels, device, guarded=True)
        x = lm.embed(self.architecture, params, tokens, ops.xp)
        starts = lm.starts(self.architecture, tokens)
        logits, after = lm.forward(self.architecture, params, x, state, ops=ops, starts=starts)
        return cast(array, logits), after


class SLSTM(Layers):
    """sLSTM layers: the package's sLSTMLayer, `num_layers` times.

    Its output is normalised within each head, so it needs no norm behind it.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = True,
        dropout: float = 0.0,
        kernels: str = "auto",
        **options: Unpack[SLSTMOptions],
    ) -> None:
        """Make the layers; arguments and errors as of `mlxhog.nn.torch.SLSTM`."""
        common = Common(batch_first=batch_first, dropout=dropout, kernels=kernels)
        super().__init__(slstm_stack(input_size, hidden_size, num_layers, common, options))


class MLSTM(Layers):
    """mLSTM layers: the package's mLSTMLayer, `num_layers` times."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        variant: str = "v1",
        batch_first: bool = True,
        dropout: float = 0.0,
        kernels: str = "auto",
        **options: Unpack[MLSTMOptions],
    ) -> None:
        """Make the layers; arguments and errors as of `mlxhog.nn.torch.MLSTM`."""
        common = Common(batch_first=batch_first, dropout=dropout, kernels=kernels)
        stack = mlstm_stack(input_size, hidden_size, num_layers, variant, common, options)
        super().__init__(stack)


class XLSTMBlock(Layers):
    """One block of an xLSTM: norm, layer and residual, and a feed-forward layer if it has one.

    The package's mLSTMBlock or sLSTMBlock; with `variant="large"` the block of xLSTM-7B.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        cell: str = "mlstm",
        variant: str = "v1",
        index: int = 0,
        of: int = 1,
        batch_first: bool = True,
        dropout: float = 0.0,
        kernels: str = "auto",
        **options: Unpack[BlockOptions],
    ) -> None:
        """Make a block; arguments and errors as of `mlxhog.nn.torch.XLSTMBlock`."""
        common = Common(batch_first=batch_first, dropout=dropout, kernels=kernels)
        super().__init__(block_stack(hidden_size, cell, variant, index, of, common, options))


class Bidirectional(Module):
    """Two modules of this file over the same rows, one from each end; outputs are concatenated."""

    def __init__(self, forwards: Layers, backwards: Layers) -> None:
        """Take both, with equal `batch_first`."""
        super().__init__()  # type: ignore[no-untyped-call]
        check_directions(forwards.stack, backwards.stack)
        self.forwards, self.backwards = forwards, backwards

    def __call__(
        self, x: array, state: tuple[State, State] | None = None, **positions: Any
    ) -> tuple[array, tuple[State, State]]:
        """Run both; arguments as of each module. The state has one entry per direction."""
        there, back, last = both_directions(self.forwards, self.backwards, x, state, positions)
        return mx.concatenate([there, back], -1), last


def _drop(shape: tuple[int, ...], rate: float) -> array:
    return mx.random.bernoulli(1 - rate, shape) / (1 - rate)


def _own(name: str) -> str:
    """Return the name here of a parameter of the package."""
    *path, leaf = name.split(".")
    return ".".join([*path, leaf.strip("_")])


def _modules(tree: Any) -> Any:
    """Return a tree of arrays with modules for its mappings, so that any part can be frozen."""
    if isinstance(tree, list):
        return [_modules(branch) for branch in tree]
    if not isinstance(tree, dict):
        return tree
    module: Any = Module()  # type: ignore[no-untyped-call]
    for name, branch in tree.items():
        setattr(module, name, _modules(branch))
    return module
