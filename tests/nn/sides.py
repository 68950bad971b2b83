"""The modules of either framework with NumPy arrays, so that a test says what holds for both."""

import importlib
from dataclasses import dataclass
from operator import attrgetter

import mlx.core as mx
import torch
from mlx.utils import tree_flatten

from tests.models.sample import perturbed
from tests.models.twins import Twin

V1 = {"num_heads": 2, "round_proj_up_to_multiple_of": 8, "chunk_size": 4}
LARGE = {"variant": "large", "num_heads": 2, "chunk_size": 4}
FFN = {"round_proj_up_to_multiple_of": 8}
KINDS = {
    "mlstm": ("MLSTM", (16, 16), V1),
    "slstm": ("SLSTM", (16, 16), {"num_heads": 2}),
    "mlstm-large": ("MLSTM", (16, 16), LARGE),
    "mlstm-block": ("XLSTMBlock", (16,), V1),
    "slstm-block": ("XLSTMBlock", (16,), {"cell": "slstm", "num_heads": 2, "feedforward": FFN}),
    "large-block": ("XLSTMBlock", (16,), {**LARGE, "ffn_round_up_to_multiple_of": 8}),
    "slstm-without-conv": ("SLSTM", (16, 16), {"num_heads": 2, "conv1d_kernel_size": 0}),
    "mlstms-projected": ("MLSTM", (6, 16, 2), V1),
    "slstms-projected": ("SLSTM", (6, 16, 2), {"num_heads": 2}),
}
"""Name -> class, sizes and options."""


@dataclass(frozen=True)
class Side(Twin):
    def make(self, name, *sizes, **options):
        module = importlib.import_module(f"mlxhog.nn.{self.framework}")
        self.seed(0)
        options = {"batch_first": True, "kernels": self.kernels} | options
        return getattr(module, name)(*sizes, **options)

    def kind(self, kind, **options):
        """Make one of KINDS, with parameters of which none is special."""
        name, sizes, own = KINDS[kind]
        layer = self.make(name, *sizes, **own, **options)
        self.load(layer, perturbed(self.parameters(layer), 3, 0.2))
        return layer

    def seed(self, seed):
        torch.manual_seed(seed)
        mx.random.seed(seed)

    def parameters(self, layer):
        if self.framework == "torch":
            return {name: self.numpy(p).copy() for name, p in layer.named_parameters()}
        return {_package(name): self.numpy(p) for name, p in tree_flatten(layer.parameters())}

    def load(self, layer, weights):
        weights = self.array(weights)
        if self.framework == "torch":
            layer.load_state_dict(weights)
        else:
            layer.load_weights(list(weights.items()))

    def run(self, layer, x, state=None, **positions):
        y, last = layer(self.array(x), self.array(state), **self.array(positions))
        return self.numpy(y), self.numpy(last)

    def grads(self, layer, x, dy, state=None, dlast=None, **positions):
        """Gradients of sum(y * dy) + sum(last * dlast) by name of the parameter, and of "input"."""
        positions = self.array(positions)
        weights = self.array(dlast) if dlast is not None else ()

        def scalar(x):
            y, last = layer(x, self.array(state), **positions)
            total = (y * self.array(dy)).sum()
            for parts, own in zip(last, weights, strict=False):
                for part, weight in zip(parts, own, strict=True):
                    total = total + (part * weight).sum()
            return total

        if self.framework == "torch":
            layer.zero_grad()
            leaf = self.array(x).requires_grad_()
            scalar(leaf).backward()
            names = self.parameters(layer)
            results = {name: self.numpy(attrgetter(name)(layer).grad) for name in names}
            return results | {"input": self.numpy(leaf.grad)}

        def of(parameters, x):
            layer.update(parameters)
            return scalar(x)

        before = layer.parameters()
        by_tree, by_input = mx.grad(of, argnums=(0, 1))(before, self.array(x))
        layer.update(before)
        results = {_package(name): self.numpy(g) for name, g in tree_flatten(by_tree)}
        return results | {"input": self.numpy(by_input)}


SIDES = {
    "torch": Side("torch", "native"),
    "mlx": Side("mlx", "native"),
    "torch-eager": Side("torch", "eager"),
    "mlx-eager": Side("mlx", "eager"),
}


def _package(name):
    for part in ("recurrent_kernel", "bias"):
        name = name.replace(f"slstm_cell.{part}", f"slstm_cell._{part}_")
    return name
