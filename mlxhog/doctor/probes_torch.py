"""Read the litmus arena with PyTorch, and share memory with MPS; imported in a child."""

import torch

from mlxhog.arena import Arena
from mlxhog.doctor.litmus import Reader, shared


def live(mapped: Arena) -> Reader:
    """Create a reader whose tensor aliases shared memory; the product is a new tensor."""
    torch.set_num_threads(1)
    alias = torch.from_numpy(shared(mapped, "dense"))
    return lambda: (alias * 1.0).numpy()


def shares_memory(device: str = "mps") -> bool:
    """Whether the CPU and MPS see each other's writes to one tensor's memory."""
    tensor = torch.ones(1024, device=device)
    torch.mps.synchronize()
    view = torch.empty(0).set_(torch.mps._host_alias_storage(tensor.untyped_storage()))
    seen = bool((view == 1).all())
    view.fill_(2.0)
    return seen and tensor.sum().item() == 2 * 1024
