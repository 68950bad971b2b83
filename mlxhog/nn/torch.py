"""xLSTM layers as modules of PyTorch, in place of `torch.nn.LSTM` or in new models.

    layer = SLSTM(16, 64, batch_first=True)
    output, state = layer(x)                    # x (B, S, 16), output (B, S, 64)
    output, state = layer(more, state)          # continues after the last call
    output, state = layer(x, lengths=lengths)   # rows of different lengths

On a CPU the cells and the matmuls around them run as native kernels, on other devices as
operations of PyTorch. Both give exact gradients of inputs, states and parameters, in float32, also
under `torch.autocast`, where inputs may be of 16 bits.
Gradients of gradients and `torch.func` need `kernels="eager"`.
"""

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlxhog.models import lm
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.kernels import choose
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import initial_value
from mlxhog.nn import layers
from mlxhog.nn.layers import read_model

__all__ = ["MLSTM", "SLSTM", "LanguageModel", "XLSTMBlock", "detach"]


def _drop(shape: tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    """Draw a mask of dropout."""
    ones = torch.ones(shape, dtype=torch.float32, device=like.device)
    return nn.functional.dropout(ones, rate)


class Layers(layers.LayersBase, nn.Module):
    """The parameters and computation of all modules."""

    batch_first = False
    drop = staticmethod(_drop)

    def start(self) -> None:
        """Create the parameters of some layers; their values depend on `torch.manual_seed`."""
        nn.Module.__init__(self)
        specs = self.stack.parameters
        add_parameters(self, {name: np.empty(s.shape, np.float32) for name, s in specs.items()})
        self.register_load_state_dict_pre_hook(_translate)  # type: ignore[no-untyped-call]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values of the xlstm package anew."""
        seed = int(torch.randint(2**31 - 1, (), device="cpu"))
        with torch.no_grad():
            for name, spec in self.stack.parameters.items():
                attrgetter(name)(self).copy_(torch.from_numpy(initial_value(spec, seed)))

    def forward(self, x: Tensor, state: Any = None, **positions: Any) -> tuple[Tensor, Any]:
        """As `mlxhog.nn.layers.LayersBase.forward`, in float32 under `torch.autocast`, too."""
        device = x.device.type
        if x.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(device):
            x = x.float()
        with torch.autocast(device, enabled=False):
            return super().forward(x, state, **positions)

    def arrays(self, x: Tensor) -> tuple[Mapping[str, Tensor], Ops]:
        """Return the parameters by name, and the operators on the device of x."""
        params = {name: attrgetter(name)(self) for name in self.stack.parameters}
        return params, choose("torch", self.kernels, x.device.type)

    def flatten_parameters(self) -> None:
        """Do nothing, as `nn.LSTM` on a CPU."""


class SLSTM(layers.SLSTMBase, Layers):
    """sLSTM layers, where `nn.LSTM` stands; see `mlxhog.nn.layers.SLSTMBase`."""


class MLSTM(layers.MLSTMBase, Layers):
    """mLSTM layers, where `nn.LSTM` stands; see `mlxhog.nn.layers.MLSTMBase`."""


class XLSTMBlock(layers.XLSTMBlockBase, Layers):
    """One block of an xLSTM; see `mlxhog.nn.layers.XLSTMBlockBase`."""


class LanguageModel(nn.Module):
    """A language model of any family, such as the winner of a search: tokens in, logits out."""

    def __init__(
        self, source: str | Path | ModelConfig, *, seed: int = 0, kernels: str = "auto"
    ) -> None:
        """Make the model of a configuration, or of what `mlxhog train --model` takes.

        A checkpoint gives its weights, too, otherwise they are the initial ones of the seed. The
        `kernels` are "auto" for the fastest of the device, or "eager".

        Raises:
            ConfigError: no such model, or no language model.
            CheckpointError: the weights of a checkpoint do not fit.
        """
        super().__init__()
        self.architecture, values = read_model(source, seed)
        self.kernels = kernels
        add_parameters(self, values)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return the logits (B, S, V) of tokens (B, S), and the state after the last position.

        The state is that of an earlier call for the same rows; None is the start. In training mode,
        which is that of a new module, dropout has the rate of the model.

        Raises:
            DataError: there is no token, or a token is outside the vocabulary.
            ConfigError: there are more tokens than the model has positions.
        """
        return logits_and_state(self, self.architecture, tokens, state, kernels=self.kernels)


def add_parameters(module: nn.Module, values: Mapping[str, NDArray[np.float32]]) -> None:
    """Give a module parameters by their dotted names, in modules of their own."""
    for name, value in values.items():
        *path, leaf = name.split(".")
        inner = module
        for part in path:
            if part not in dict(inner.named_children()):
                inner.add_module(part, nn.Module())
            inner = inner.get_submodule(part)
        # Of torch's default type, which transformers sets while it loads.
        inner.register_parameter(
            leaf, nn.Parameter(torch.tensor(value).to(torch.get_default_dtype()))
        )


def logits_and_state(
    module: nn.Module, architecture: ModelConfig, tokens: Tensor, state: Any = None, *,
    kernels: str = "auto",
) -> tuple[Tensor, Any]:  # fmt: skip
    """Run a language model with the parameters of a module; see `LanguageModel.forward`.

    It computes in float32; parameters of another type are converted. In training mode it drops
    units at the rate of the model.
    """
    ops = choose("torch", kernels, tokens.device.type)
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if not (is_traced or torch.compiler.is_compiling()):
        layers.check_input(architecture, tokens, state, ops.xp)
    named = module.named_parameters(remove_duplicate=False)  # a user may tie head and embedding
    params = {name: value.float() for name, value in named}
    masks = layers.draw_masks(architecture, tokens, _drop) if module.training else None
    with torch.autocast(tokens.device.type, enabled=False):
        return lm.logits(architecture, params, tokens, state, ops=ops, masks=masks)


def detach(state: Any) -> Any:
    """Return a state as constants, through which no gradient flows; None remains None."""
    return None if state is None else [tuple(part.detach() for part in block) for block in state]


def _translate(module: Layers, entries: dict[str, Any], prefix: str, *_: Any) -> None:
    """Convert layouts of the package's CUDA backend and of fused weights to the one here."""
    own = {k.removeprefix(prefix): v for k, v in entries.items() if k.startswith(prefix)}
    expected: Mapping[str, Any] = module.stack.parameters
    if all(k in expected and tuple(v.shape) == expected[k].shape for k, v in own.items()):
        return
    arrays = {k: v.detach().float().cpu().numpy() for k, v in own.items()}
    for name in own:
        del entries[prefix + name]
    for name, array in module.stack.translate(arrays).items():
        entries[prefix + name] = torch.tensor(array)
