"""PyTorch as a backend: "torch:cpu", and "torch:mps" as a device variant of it."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import stat
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Slot
from mlxhog.arena.process import monotonic_ns
from mlxhog.backends import probes
from mlxhog.backends.backend import WEIGHTS, Backend, Grads
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.backends.reader import State, check_batch
from mlxhog.base import mapped
from mlxhog.data.batch import Batch
from mlxhog.errors import UNLOADABLE, ConfigError, EnvironmentLacks, LostGPU, not_imported
from mlxhog.models.families import ModelConfig
from mlxhog.optim.gradients import Float32, Int32

STDERR = 2
MPS_SAYS = re.compile(
    rb"command buffer exited with error status|Execution of the command buffer was aborted"
)
"""What MPS writes to standard error after work that its GPU gave up (pytorch issue 125442)."""

try:
    import torch
except UNLOADABLE as error:
    raise not_imported(
        "torch",
        error,
        "backend torch needs the package torch: python -m pip install -c constraints.txt torch",
    ) from error


class TorchBackend(Backend):
    """PyTorch on one device; on the CPU the model computes directly in the parameter buffer.

    A Mac's CPU and GPU share their memory. From 2.13 on torch gives the CPU a view of a tensor on
    the GPU (`torch.mps._host_alias_storage`, private). In a training with it the parameter buffer
    is the memory of the parameters, and gradients are read where they lie, after one wait for the
    GPU. Without it every tensor is copied, and every copy waits.

    torch never asks Metal whether work failed (pytorch issue 193571): where the GPU gave it up, the
    memory has an older gradient. So the GPU counts in a tensor, before and after each pass, and
    after the wait its count must be ours; and MPS must not have written of it to standard error,
    which is a worker's log.
    """

    def __init__(
        self, name: str, *, threads: int, kernels: str, share: GPUShare, narrow: bool = False
    ) -> None:
        """Choose device and threads of this process; arguments and errors as of `create`."""
        device = name.partition(":")[2]
        if device == "mps" and not torch.backends.mps.is_available():
            raise EnvironmentLacks(
                f"backend torch:mps needs an Apple GPU that torch supports; this is "
                f"{platform.system()} on {platform.machine()}; use torch:cpu"
            )
        super().__init__("torch", device, kernels, threads, share, narrow)
        self.device = torch.device(device)
        self._aliased = False  # the CPU sees the tensors of the GPU
        self._counter: torch.Tensor | None = None  # of a GPU, see the class
        self._counts = self._log_bytes = 0
        torch.set_num_threads(threads)

    def _bound(
        self, slots: Mapping[str, Slot], n_floats: int, live: Float32 | None
    ) -> dict[str, Any]:
        if live is not None and self.on_gpu:
            raise ConfigError(
                f"--read live: {self.name} cannot alias the arena; use --read snapshot"
            )
        if not self.on_gpu:
            self._flat = self._host = (
                torch.zeros(n_floats) if live is None else torch.from_numpy(live)
            )
        else:
            here = probes.Device("torch", self.device, self._threads)
            if not probes.computes_long_products(here, self._ops()):
                raise EnvironmentLacks(
                    f"{self.name} adds long sums wrong on this GPU with torch {torch.__version__}, "
                    "so its gradients would be wrong; update torch, or use --workers mlx:gpu"
                )
            self._begin_to_count()
            self._flat = torch.zeros(n_floats, device=self.device)
            self._host, self._aliased = _host_form(self._flat)
            how = "read where they lie" if self._aliased else "copied, each with a wait for the GPU"
            print(f"gradients of {self.name} are {how}", flush=True)
        self.param_buffer = self._host.numpy()
        return {
            name: self._flat[slot.offset : slot.offset + slot.size].view(slot.shape).detach()
            for name, slot in slots.items()
        }

    def load(
        self, model: ModelConfig, tensors: Mapping[str, NDArray[Any]], *, weights: str = "float32"
    ) -> list[str]:
        """Load a model read-only; memory of arrays, but not of files, is shared if types agree."""
        if weights not in WEIGHTS:
            raise ConfigError(
                f"weights are {weights!r}, which {self.name} cannot compute with; use an mlx "
                f"backend (--backend mlx:cpu, mlx:gpu), or weights of {' or '.join(WEIGHTS)}"
            )
        if self.on_gpu:
            self._begin_to_count()
        return super().load(model, tensors, weights=weights)

    def _loaded(self, tensor: NDArray[Any], weights: str) -> tuple[torch.Tensor, bool]:
        host, finite = _host_tensor(tensor, WEIGHTS[weights], where_it_lies=not self.on_gpu)
        return host.to(self.device), finite

    def refresh(self) -> None:
        """Let the device see the parameter buffer: by a copy, or the wait that torch asks for."""
        if self._aliased:
            torch.mps.synchronize()
        elif self.on_gpu:
            self._flat.copy_(self._host)

    def _tokens(self, tokens: Int32) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device).long()

    def loss_and_grads(self, batch: Batch) -> tuple[float, Grads]:
        """Mean cross entropy in nats and its gradient, by autograd."""
        check_batch(batch, self.model.vocab_size)
        began_ns = monotonic_ns()
        self._count()
        inputs = self._inputs(batch)
        leaves = {name: leaf.requires_grad_() for name, leaf in inputs.leaves.items()}
        loss = self._loss(leaves, *inputs.fixed)
        forward_ns = monotonic_ns() - began_ns
        found = torch.autograd.grad(loss, list(leaves.values()))
        *arrays, mean = self._on_hosts([*found, loss])
        if not self.on_gpu:
            self.forward_share = forward_ns / (monotonic_ns() - began_ns)
        return mean.item(), self._by_rows(inputs, dict(zip(leaves, arrays, strict=True)))

    def _on_host(self, array: torch.Tensor) -> NDArray[Any]:
        return self._on_hosts([array])[0]

    def _on_hosts(self, tensors: Sequence[torch.Tensor]) -> list[NDArray[Any]]:
        """Tensors as C-contiguous NumPy arrays; one wait for the GPU if the CPU sees them."""
        tensors = [tensor.detach().contiguous() for tensor in tensors]
        self._count()
        if self._counter is not None:
            tensors.append(self._counter)
        if self._aliased:
            torch.mps.synchronize()
            arrays = [_alias(tensor).numpy() for tensor in tensors]
        else:
            arrays = [tensor.cpu().numpy() for tensor in tensors]
        if self._counter is not None:
            self._check_work(arrays.pop().item())
        return arrays

    def _check_work(self, counted: int) -> None:
        """Raise LostGPU if the GPU gave up work since the last call."""
        begin, self._log_bytes = self._log_bytes, _size(STDERR)
        written = (
            os.pread(STDERR, self._log_bytes - begin, begin) if begin < self._log_bytes else b""
        )
        if words := MPS_SAYS.search(written):
            raise LostGPU(f"{self.name} lost work: MPS says {words[0].decode()!r}")
        if counted != self._counts:
            raise LostGPU(
                f"{self.name} lost work: its GPU counted to {counted}, expected {self._counts}"
            )

    def _begin_to_count(self) -> None:
        self._counter, self._counts = torch.zeros((), dtype=torch.int32, device=self.device), 0
        self._log_bytes = _size(STDERR)

    def _count(self) -> None:
        """Let the GPU count, in order with its other work."""
        if self._counter is not None:
            self._counter += 1
            self._counts += 1

    def _from_host(self, array: Float32) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def _without_gradient(self) -> AbstractContextManager[Any]:
        return torch.inference_mode()

    def _constant(self, state: State) -> State:
        # autograd cannot save tensors of inference_mode for a gradient, but it can save copies.
        return [tuple(part.clone() for part in block) for block in state]

    def close(self) -> None:
        """Drop the tensors that are views of the parameter buffer."""
        super().close()
        self._host = torch.empty(0)


def _size(fd: int) -> int:
    """Bytes of a file that can be read; 0 for a terminal, a pipe, or a file to write only."""
    mode = os.fstat(fd).st_mode
    readable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
    return os.fstat(fd).st_size if stat.S_ISREG(mode) and readable else 0


def _host_form(tensor: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """A view of a GPU's tensor for the CPU, and True; memory of the CPU, and False, without one.

    torch has no view before 2.13, nor where the memory is the GPU's alone.
    """
    try:
        view = _alias(tensor)
    except (AttributeError, RuntimeError, ValueError):
        return torch.zeros(tensor.shape), False
    torch.mps.synchronize()
    return view, True


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the CPU in the memory of one on the GPU, which stays alive with it.

    Call `torch.mps.synchronize` before it is read or written, and before the GPU's next work.
    Source: torch 2.13, `torch/mps/__init__.py`.
    """
    storage = torch.mps._host_alias_storage(tensor.untyped_storage())
    view = torch.empty(0, dtype=tensor.dtype)
    return view.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _host_tensor(
    tensor: NDArray[Any], dtype: np.dtype[Any], *, where_it_lies: bool
) -> tuple[torch.Tensor, bool]:
    """Return a tensor of type `dtype` on the host, and whether every number is finite."""
    is_bfloat16 = dtype == mapped.BFLOAT16  # NumPy and torch exchange bfloat16 as integers
    # A program may shorten a mapped file while the model is used.
    where_it_lies = where_it_lies and not mapped.is_mapped(tensor)
    if where_it_lies and tensor.dtype == dtype and tensor.flags.c_contiguous:
        with warnings.catch_warnings():
            # The array may be read-only; these parameters are never written.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            host = torch.from_numpy(tensor.view(np.int16) if is_bfloat16 else tensor)
        finite = mapped.is_finite(tensor)
    else:
        # Memory of torch, not NumPy: NumPy asks for huge pages, and the system took seconds there.
        host = torch.empty(tensor.shape, dtype=torch.int16 if is_bfloat16 else torch.float32)
        finite = mapped.copy(tensor, host.numpy().view(dtype))
    return host.view(torch.bfloat16) if is_bfloat16 else host, finite
