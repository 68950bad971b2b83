"""xLSTM layers as modules of PyTorch, in place of `torch.nn.LSTM` or in new models.

    layer = SLSTM(16, 64, batch_first=True)
    output, state = layer(x)                    # x (B, S, 16), output (B, S, 64)
    output, state = layer(more, state)          # continues after the last call
    output, state = layer(x, lengths=lengths)   # rows of different lengths

On a CPU the cells and the products around them run as native kernels, on other devices as
operations of PyTorch. Both give exact gradients of inputs, states and parameters, in float32, also
under `torch.autocast`, where inputs may be of 16 bits.
Gradients of gradients and `torch.func` need `kernels="reference"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias, Unpack, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from mlxhog.errors import ConfigError
from mlxhog.models import lm
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.kernels import choose
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

State: TypeAlias = tuple[tuple[Tensor, ...], ...]
"""One entry per layer, see `mlxhog/nn/layers.py`."""

Lengths: TypeAlias = Tensor | list[int]

__all__ = ["MLSTM", "SLSTM", "Bidirectional", "LanguageModel", "XLSTMBlock", "detach"]


class Layers(LikeLSTM, nn.Module):
    """Parameters and forward pass of all modules."""

    def __init__(self, stack: Stack) -> None:
        """Create the parameters of some layers; their values depend on `torch.manual_seed`."""
        super().__init__()
        self.stack = stack
        add_parameters(
            self, {name: np.empty(s.shape, np.float32) for name, s in stack.parameters.items()}
        )
        self.register_load_state_dict_pre_hook(_translate)  # type: ignore[no-untyped-call]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values of the xlstm package anew."""
        seed = int(torch.randint(2**31 - 1, (), device="cpu"))
        with torch.no_grad():
            for name, spec in self.stack.parameters.items():
                attrgetter(name)(self).copy_(torch.from_numpy(initial_value(spec, seed)))

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: State | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Any, State]:
        """Run the layers over a batch.

        Args:
            x: (S, B, input_size), or (B, S, input_size) if `batch_first`, float32; or one sequence
                (S, input_size), whose state has no axis of rows; or a PackedSequence.
            state: result of an earlier call for the same rows; None is zeros.
            lengths: (B,), number of positions of each row that count, from the first; the others
                are padding.
            mask: (B, S), true at positions that count, anywhere in the row.
            reverse: read every row from its last position that counts to its first; the output
                keeps its positions, and the state is that after the first position.

        Returns:
            The output, like x but of width `hidden_size` and 0 at padding, or a PackedSequence;
            and the state of every row after its last position that counts.

        Raises:
            ShapeError: x, state, lengths or mask have another shape.
            ConfigError: a type other than float32, or a length out of range.
        """
        if isinstance(x, PackedSequence):
            if lengths is not None or mask is not None:
                raise ConfigError("a PackedSequence has its own lengths; leave out the others")
            return self._packed(x, state, reverse)
        return self._run(x, state, lengths, mask, reverse)

    def _packed(
        self, x: PackedSequence, state: State | None, reverse: bool
    ) -> tuple[PackedSequence, State]:
        batch_first = self.stack.batch_first
        padded, lengths = pad_packed_sequence(x, batch_first=batch_first)
        y, last = self._run(padded, state, lengths, None, reverse)
        if x.sorted_indices is not None:
            y = y.index_select(0 if batch_first else 1, x.sorted_indices)
            lengths = lengths[x.sorted_indices.cpu()]
        data = pack_padded_sequence(y, lengths, batch_first=batch_first).data
        return PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices), last

    def _run(
        self,
        x: Tensor,
        state: State | None,
        lengths: Lengths | None,
        mask: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, State]:
        """Run the layers in float32; arguments as of `forward`."""
        device = x.device.type
        if x.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(device):
            x = x.float()
        params = {name: attrgetter(name)(self) for name in self.stack.parameters}
        self.stack.check(x, state, params, torch.float32, ".float()")

        def drop(shape: tuple[int, ...], rate: float) -> Tensor:
            return nn.functional.dropout(torch.ones(shape, device=x.device), rate)

        with torch.autocast(device, enabled=False):
            return self.stack.forward(
                params,
                x,
                state,
                ops=choose("torch", self.stack.kernels, device, guarded=True),
                lengths=_on_cpu(lengths),
                mask=_on_cpu(mask),
                reverse=reverse,
                drop=drop if self.training else None,
            )

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer, those of `input_proj` with the first."""
        weights: list[list[nn.Parameter]] = [[] for _ in self.stack.names]
        for name, parameter in self.named_parameters():
            layer = name.removeprefix("layers.").split(".")[0] if len(weights) > 1 else "0"
            weights[int(layer) if layer.isdigit() else 0].append(parameter)
        return weights

    def flatten_parameters(self) -> None:
        """Do nothing, as `nn.LSTM` on a CPU."""

    def extra_repr(self) -> str:
        """Return sizes and variant for `repr`."""
        return self.stack.describe()


class LanguageModel(nn.Module):
    """A language model of any family, such as the winner of a search: tokens in, logits out."""

    def __init__(
        self, source: str | Path | ModelConfig, *, seed: int = 0, kernels: str = "auto"
    ) -> None:
        """Make the model of a name, a model file, a checkpoint's config.json, or a configuration.

        Args:
            source: as `mlxhog train --model` takes it; a checkpoint gives its weights, too.
            seed: of the initial values, those of `mlxhog train`.
            kernels: "auto" for the fastest of the device, "reference" for PyTorch's own operations.

        Raises:
            ConfigError: no such model, or no language model.
            CheckpointError: the weights of a checkpoint do not fit.
        """
        super().__init__()
        self.architecture, values = opened(source, seed)
        self.kernels = kernels
        add_parameters(self, values)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return the logits (B, S, V) of tokens (B, S), and the state after the last position.

        Args:
            tokens: (B, S) integers in [0, V).
            state: result of an earlier call for the same rows; None is the start.
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
        parameter = nn.Parameter(torch.empty(value.shape))
        with torch.no_grad():
            parameter.copy_(torch.tensor(value))
        inner.register_parameter(leaf, parameter)


def logits_and_state(
    module: nn.Module,
    architecture: ModelConfig,
    tokens: Tensor,
    state: Any = None,
    *,
    kernels: str = "auto",
) -> tuple[Tensor, Any]:
    """Run a language model with the parameters of a module; see `LanguageModel.forward`.

    It computes in float32; parameters of another type are converted.
    """
    ops = choose("torch", kernels, tokens.device.type, guarded=True)
    params = {name: value.float() for name, value in module.named_parameters()}
    with torch.autocast(tokens.device.type, enabled=False):
        x = lm.embed(architecture, params, tokens, ops.xp)
        starts = lm.starts(architecture, tokens)
        logits, after = lm.forward(architecture, params, x, state, ops=ops, starts=starts)
    return cast(Tensor, logits), after


class SLSTM(Layers):
    """sLSTM layers where `nn.LSTM` stands: the package's sLSTMLayer, `num_layers` times.

    Its output is normalised within each head, so nothing has to follow.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        kernels: str = "auto",
        **options: Unpack[SLSTMOptions],
    ) -> None:
        """Make the layers.

        Args:
            input_size: width of the input; another one than `hidden_size` adds a linear map before
                the first layer.
            hidden_size: width of the output and of the cell, a multiple of `num_heads`.
            num_layers: layers, each the input of the next.
            batch_first: whether arrays are (B, S, width), or (S, B, width) as for `nn.LSTM`.
            dropout: rate at which units are zeroed while training, in every layer, where the
                package does: before the norm of the output.
            kernels: "auto" for the fastest of the device, "reference" for PyTorch's own operations.
            **options: fields of the package's sLSTMLayerConfig: `num_heads` (4),
                `conv1d_kernel_size` (4; 0 for none), `bias_init`, `recurrent_weight_init`,
                `group_norm_weight`.

        Raises:
            ConfigError: a size does not divide, or an option is unknown or out of range.
        """
        common = Common(batch_first=batch_first, dropout=dropout, kernels=kernels)
        super().__init__(slstm_stack(input_size, hidden_size, num_layers, common, options))


class MLSTM(Layers):
    """mLSTM layers where `nn.LSTM` stands: the package's mLSTMLayer, `num_layers` times."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        variant: str = "v1",
        batch_first: bool = False,
        dropout: float = 0.0,
        kernels: str = "auto",
        **options: Unpack[MLSTMOptions],
    ) -> None:
        """Make the layers.

        Args:
            input_size: width of the input; another one than `hidden_size` adds a linear map before
                the first layer.
            hidden_size: width of the output.
            num_layers: layers, each the input of the next.
            variant: "v1" for the layer of the first paper, which widens its input and has a
                convolution; "large" for that of xLSTM-7B.
            batch_first: whether arrays are (B, S, width), or (S, B, width) as for `nn.LSTM`.
            dropout: rate at which units of the output are zeroed while training, in every layer.
            kernels: "auto" for the fastest of the device, "reference" for PyTorch's own operations.
            **options: fields of the package's mLSTMLayerConfig of that variant, `num_heads` (4)
                first, and `chunk_size`; `MLSTMOptions` lists them.

        Raises:
            ConfigError: a size does not divide, or an option is unknown or out of range.
        """
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
        batch_first: bool = False,
        dropout: float = 0.0,
        kernels: str = "auto",
        **options: Unpack[BlockOptions],
    ) -> None:
        """Make a block.

        Args:
            hidden_size: width of input and output.
            cell: "mlstm" or "slstm".
            variant: "v1" for blocks of the first paper, "large" for that of xLSTM-7B.
            index: which block of the model it is, from 0; initial values depend on it.
            of: how many blocks the model has, likewise.
            batch_first: whether arrays are (B, S, width), or (S, B, width).
            dropout: rate at which units are zeroed while training, in both of its layers.
            kernels: "auto" for the fastest of the device, "reference" for PyTorch's own operations.
            **options: as those of `SLSTM` or `MLSTM`, and of the feed-forward layer;
                `BlockOptions` lists them.

        Raises:
            ConfigError: a size does not divide, or an option is unknown or out of range.
        """
        common = Common(batch_first=batch_first, dropout=dropout, kernels=kernels)
        super().__init__(block_stack(hidden_size, cell, variant, index, of, common, options))


class Bidirectional(nn.Module):
    """Two modules of this file over the same rows, one from each end; outputs are concatenated."""

    def __init__(self, forwards: Layers, backwards: Layers) -> None:
        """Take both, with equal `batch_first`."""
        super().__init__()
        check_directions(forwards.stack, backwards.stack)
        self.forwards, self.backwards = forwards, backwards

    def forward(
        self, x: Any, state: tuple[State, State] | None = None, **positions: Any
    ) -> tuple[Any, tuple[State, State]]:
        """Run both; arguments as of each module. The state has one entry per direction."""
        there, back, last = both_directions(self.forwards, self.backwards, x, state, positions)
        if isinstance(x, PackedSequence):
            return there._replace(data=torch.cat([there.data, back.data], -1)), last
        return torch.cat([there, back], -1), last


def detach(state: Any) -> Any:
    """Return a state, or a pair of states, as constants, through which no gradient flows."""
    return state.detach() if isinstance(state, Tensor) else tuple(map(detach, state))


def _on_cpu(x: Lengths | None) -> Lengths | None:
    return x.detach().cpu() if isinstance(x, Tensor) else x


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
