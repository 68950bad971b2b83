"""xLSTM layers as modules of MLX.

    layer = SLSTM(16, 64)
    output, state = layer(x)                    # x (B, S, 16), output (B, S, 64)
    output, state = layer(more, state)          # continues after the last call
    output, state = layer(x, lengths=lengths)   # rows of different lengths

On a CPU the cells and the matmuls around them run as native kernels, which evaluate their inputs.
So inside `mx.compile` and `mx.vmap` use `kernels="eager"`, operations of MLX. `set_threads`
sets the threads of native kernels. All arrays are float32.

MLX has no parameters whose names begin with an underscore: `_recurrent_kernel_` and `_bias_` of the
package's sLSTM cell are `recurrent_kernel` and `bias` here. `load_weights` reads both.
"""

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.core import array
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from mlxhog.models import lm
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.kernels import choose
from mlxhog.models.ops.native.adapter_mlx import set_threads
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import initial_value
from mlxhog.nn import layers
from mlxhog.nn.layers import read_model

__all__ = ["MLSTM", "SLSTM", "LanguageModel", "XLSTMBlock", "set_threads"]


def _drop(shape: tuple[int, ...], rate: float, like: array) -> array:
    """Draw a mask of dropout."""
    return mx.random.bernoulli(1 - rate, shape) / (1 - rate)


class Layers(layers.LayersBase, Module):
    """The parameters and computation of all modules."""

    __call__ = layers.LayersBase.forward
    batch_first = True
    drop = staticmethod(_drop)

    def start(self) -> None:
        """Create the parameters of some layers; their values depend on `mx.random.seed`."""
        Module.__init__(self)  # type: ignore[no-untyped-call]
        seed = int(cast(int, mx.random.randint(0, 2**31 - 1).item()))
        specs = self.stack.parameters
        _add_parameters(self, {name: initial_value(spec, seed) for name, spec in specs.items()})

    def arrays(self, x: array) -> tuple[dict[str, array], Ops]:
        """Return the parameters by the package's names, and the operators."""
        tree: dict[str, array] = dict(tree_flatten(cast(Any, self).parameters()))
        return {name: tree[_own(name)] for name in self.stack.parameters}, _ops(self.kernels)

    def load_weights(self, file_or_weights: Any, strict: bool = True) -> Module:
        """Load parameters by name, like `mlx.nn.Module.load_weights`.

        They are in a file of MLX or safetensors, or pairs of name and array, of MLX or NumPy; also
        a state dict of the xlstm package, in its layout.
        """
        if isinstance(file_or_weights, str | Path):
            file_or_weights = list(cast(Any, mx.load(str(file_or_weights))).items())
        package = {_own(name): name for name in self.stack.parameters}
        arrays = {package.get(k, k): _float32(x) for k, x in file_or_weights}
        own = [(_own(name), mx.array(x)) for name, x in self.stack.translate(arrays).items()]
        return Module.load_weights(self, own, strict)


class SLSTM(layers.SLSTMBase, Layers):
    """sLSTM layers, where `nn.LSTM` stands; see `mlxhog.nn.layers.SLSTMBase`."""


class MLSTM(layers.MLSTMBase, Layers):
    """mLSTM layers, where `nn.LSTM` stands; see `mlxhog.nn.layers.MLSTMBase`."""


class XLSTMBlock(layers.XLSTMBlockBase, Layers):
    """One block of an xLSTM; see `mlxhog.nn.layers.XLSTMBlockBase`."""


class LanguageModel(Module):
    """A language model of any family, such as the winner of a search: tokens in, logits out."""

    def __init__(
        self, source: str | Path | ModelConfig, *, seed: int = 0, kernels: str = "auto"
    ) -> None:
        """Make the model; arguments and errors as of `mlxhog.nn.torch.LanguageModel`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.architecture, values = read_model(source, seed)
        self.kernels = kernels
        self._names = {_own(name): name for name in values}
        _add_parameters(self, values)

    def __call__(self, tokens: array, state: Any = None) -> tuple[array, Any]:
        """As `forward` of `mlxhog.nn.torch.LanguageModel`."""
        own: dict[str, array] = dict(tree_flatten(cast(Any, self).parameters()))
        params = {self._names[name]: value.astype(mx.float32) for name, value in own.items()}
        ops = _ops(self.kernels)
        layers.check_input(self.architecture, tokens, state, ops.xp)
        masks = layers.draw_masks(self.architecture, tokens, _drop) if self.training else None
        return lm.logits(self.architecture, params, tokens, state, ops=ops, masks=masks)


def _float32(x: Any) -> NDArray[np.float32]:
    """Return an array of MLX, maybe of bfloat16, which NumPy lacks, or of NumPy."""
    return np.asarray(x.astype(mx.float32) if isinstance(x, array) else x, np.float32)


def _ops(kernels: str) -> Ops:
    device = "cpu" if mx.default_device().type == mx.cpu else "gpu"
    return choose("mlx", kernels, device)


def _own(name: str) -> str:
    """Return the name here of a parameter of the package."""
    *path, leaf = name.split(".")
    return ".".join([*path, leaf.strip("_")])


def _add_parameters(module: Module, values: dict[str, NDArray[np.float32]]) -> None:
    """Give a module parameters by their dotted names, in modules of their own."""
    tree = tree_unflatten([(_own(name), mx.array(value)) for name, value in values.items()])
    for name, branch in cast(dict[str, Any], tree).items():
        setattr(module, name, _modules(branch))


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
