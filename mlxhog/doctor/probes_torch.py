"""PyTorch as a reader of the litmus arena; imported in a child."""

from __future__ import annotations

import torch

from mlxhog.arena import Arena
from mlxhog.doctor.litmus import Reader, shared


def live(mapped: Arena) -> Reader:
    """Create the reader whose tensor aliases the shared bytes; the product is a new tensor."""
    torch.set_num_threads(1)
    alias = torch.from_numpy(shared(mapped, "dense"))
    return lambda: (alias * 1.0).numpy()
