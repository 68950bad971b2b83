"""An xLSTM on a machine without a GPU: is there a CPU version (NX-AI/xlstm #85)?

    python -m pip install xlstm
    python examples/xlstm_on_cpu.py

Yes: no `device`, no `backend`, no compiler at run time. `SLSTM` and `MLSTM` take the state dict of
the package's layer, also of one that was trained on a GPU, whose sLSTM stores its recurrent matrix
in another layout. The output is the same; the recurrence runs as a native kernel instead of as a
loop in Python.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from xlstm.blocks.slstm.cell import sLSTMCell_cuda
from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

from mlxhog.nn.torch import SLSTM

WIDTH, HEADS, ROWS, POSITIONS = 64, 4, 8, 64


def theirs() -> tuple[Any, dict[str, torch.Tensor]]:
    """The package's layer on a CPU, and its state dict as its CUDA backend would have stored it."""
    config = sLSTMLayerConfig(
        embedding_dim=WIDTH,
        num_heads=HEADS,
        backend="vanilla",
        dtype="float32",
        recurrent_weight_init="standard",
    )
    layer = sLSTMLayer(config)
    layer.reset_parameters()
    on_gpu = sLSTMCell_cuda(config, skip_backend_init=True)
    cell, entries = layer.slstm_cell, layer.state_dict()
    R, b = cell._recurrent_kernel_int2ext(cell._recurrent_kernel_), cell._bias_int2ext(cell._bias_)
    entries["slstm_cell._recurrent_kernel_"] = on_gpu._recurrent_kernel_ext2int(R)
    entries["slstm_cell._bias_"] = on_gpu._bias_ext2int(b)
    return layer, entries


def seconds(step: Callable[[], Any]) -> float:
    """The shortest of three times."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> dict[str, float]:
    """Load the weights of a GPU, compare outputs, and time a training step of both."""
    torch.manual_seed(0)
    package, stored_on_a_gpu = theirs()
    ours = SLSTM(WIDTH, WIDTH, num_heads=HEADS, batch_first=True)
    ours.load_state_dict(stored_on_a_gpu)

    x = torch.randn(ROWS, POSITIONS, WIDTH)
    with torch.no_grad():
        y, _ = ours(x)
        apart = float((y - package(x)).abs().max())
    print(f"outputs of the package and of mlxhog differ by {apart:.1e} at most")

    slow = seconds(lambda: package(x).square().mean().backward())
    fast = seconds(lambda: ours(x)[0].square().mean().backward())
    print(f"forward and backward: package {1e3 * slow:.0f} ms, mlxhog {1e3 * fast:.1f} ms")
    return {"apart": apart, "ratio": slow / fast}


if __name__ == "__main__":
    main()
