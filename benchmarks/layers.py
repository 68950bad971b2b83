"""Layers of `mlxhog.nn.torch` beside the xlstm package's and `nn.LSTM`: forward and backward.

    python benchmarks/layers.py                     both layers, one thread and two
    python benchmarks/layers.py --quick             fewer and shorter turns, about two minutes
    python benchmarks/layers.py --only slstm        one of: slstm mlstm

All have the same width, batch and input, and give gradients of the input and of every parameter.
They take turns, each in a process of its own; a ratio is the median of the turns' own ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from harness.claims import flags, measured
from harness.interleaved import Program
from harness.machine import smallest
from language_models.peers import vanilla
from language_models.rows import Report

OURS, PACKAGE, LSTM = "mlxhog.nn.torch", "xlstm package", "nn.LSTM"
LIMITS = {"slstm": 20.0, "mlstm": 2.0}
HEADS = 4


@dataclass(frozen=True)
class Size:
    """A batch of B sequences of S positions, d wide."""

    batch: int = 8
    seq: int = 256
    d: int = 128

    @property
    def name(self):
        return f"B {self.batch}, S {self.seq}, d {self.d}, NH {HEADS}"


SIZES = {"slstm": Size(), "mlstm": Size(batch=4, seq=512)}


def ours(layer, size, threads):
    """A step of the module that takes the place of `nn.LSTM`."""
    from mlxhog.nn.torch import MLSTM, SLSTM

    make = {"slstm": SLSTM, "mlstm": MLSTM}[layer]
    module = make(size.d, size.d, num_heads=HEADS, batch_first=True)
    return _step(module, lambda x: module(x)[0], size, threads)


def package(layer, size, threads):
    """A step of the package's layer, the sLSTM with the backend that runs on a CPU."""
    from xlstm import mLSTMLayerConfig, sLSTMLayerConfig
    from xlstm.blocks.mlstm.layer import mLSTMLayer
    from xlstm.blocks.slstm.layer import sLSTMLayer

    if layer == "slstm":
        config = sLSTMLayerConfig(embedding_dim=size.d, num_heads=HEADS, **vanilla())
        module = sLSTMLayer(config)
    else:
        config = mLSTMLayerConfig(embedding_dim=size.d, num_heads=HEADS, context_length=size.seq)
        module = mLSTMLayer(config)
    module.reset_parameters()
    return _step(module, module, size, threads)


def lstm(size, threads):
    """A step of `nn.LSTM`."""
    import torch

    module = torch.nn.LSTM(size.d, size.d, batch_first=True)
    return _step(module, lambda x: module(x)[0], size, threads)


def _step(module, forward, size, threads):
    import torch

    torch.set_num_threads(threads)
    draw = np.random.default_rng(0).standard_normal((size.batch, size.seq, size.d), np.float32)
    x = torch.from_numpy(draw).requires_grad_()
    leaves = [x, *module.parameters()]

    def step():
        torch.autograd.grad(forward(x).square().sum(), leaves)

    return step


def measure(findings, chosen):
    """Every layer that was asked for."""
    report = Report(findings.claims, findings.results, findings.twins, quick=chosen.quick)
    for layer in chosen.only or LIMITS:
        beside_peers(report, layer, smallest([1], [1, 2]))


def beside_peers(report, layer, thread_counts):
    """One layer beside its peers, with each number of threads."""
    size = SIZES[layer]
    programs = {
        OURS: Program("layers", "ours", {"layer": layer, "size": size}),
        PACKAGE: Program("layers", "package", {"layer": layer, "size": size}),
        LSTM: Program("layers", "lstm", {"size": size}),
    }
    for threads in thread_counts:
        row = f"{layer}, {size.name}, threads {threads}"
        turns = report.measure(row, programs, size.batch * size.seq, threads)
        ratio = turns.ratio(PACKAGE, OURS)
        report.at_least(f"{row}: {OURS} / {PACKAGE}", ratio, LIMITS[layer])
        beside = turns.ratio(LSTM, OURS)
        print(f"  {OURS} / {LSTM}: {beside}")
        report.results[row] |= {f"{OURS} / {LSTM}": beside}


def main():
    """Measure what the flags ask for."""
    chosen = flags(__doc__, parts=LIMITS, quick="fewer and shorter turns").parse_args()
    return measured("layers", chosen, measure, packages=("torch", "xlstm"), quiet=True)


if __name__ == "__main__":
    raise SystemExit(main())
