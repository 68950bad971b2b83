"""PyTorch as a backend: "torch:cpu", and "torch:mps" as a device variant of it."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Slot
from mlxhog.arena.process import monotonic_ns
from mlxhog.backends import probes
from mlxhog.backends.backend import Backend, Grads
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.backends.inference import State, check_batch
from mlxhog.base import mapped
from mlxhog.data.batch import Batch
from mlxhog.errors import UNLOADABLE, ConfigError, EnvironmentLacks, LostGPU, not_imported
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.frozen import FrozenWeight
from mlxhog.models.ops.kernels import resolve
from mlxhog.optim.gradients import Float32, Int32

STDERR = 2
MPS_SAYS = re.compile(
    rb"command buffer exited with error status|Execution of the command buffer was aborted"
)
"""What MPS writes to standard error after its GPU aborted work (pytorch issue 125442)."""

try:
    import torch
except UNLOADABLE as error:
    raise not_imported(
        "torch",
        error,
        "backend torch needs the package torch: python -m pip install -c constraints.txt torch",
    ) from error


class TorchBackend(Backend):
    """PyTorch on one device; on the CPU the parameters are views of the parameter buffer.

    A Mac's CPU and GPU share their memory. From 2.13 on torch gives the CPU a view of a tensor on
    the GPU (`torch.mps._host_alias_storage`, private). With it a training's parameter buffer is the
    memory of the parameters, and gradients are read in place, after one sync with the GPU. Without
    it every tensor is copied, and every copy syncs.

    torch never asks Metal whether work failed (pytorch issue 193571): after aborted work the memory
    still has an older gradient. So the GPU counts in a tensor, before and after each pass, and
    after the sync its count must equal ours; and MPS must not have reported an abort on standard
    error, which is a worker's log.
    """

    def __init__(
        self, name: str, *, threads: int, kernels: str, share: GPUShare, bf16_matmuls: bool = False
    ) -> None:
        """Choose the device; arguments and errors as of `create`.

        torch's threads of this process change when `bind` begins to train, and else only while this
        model computes.
        """
        device = name.partition(":")[2]
        if device == "mps" and not torch.backends.mps.is_available():
            raise EnvironmentLacks(
                f"backend torch:mps needs an Apple GPU that torch supports; this is "
                f"{platform.system()} on {platform.machine()}; use torch:cpu"
            )
        super().__init__("torch", device, kernels, threads, share, bf16_matmuls)
        self.device = torch.device(device)
        self._aliased = False  # whether the CPU has views of the GPU's tensors
        self._counter: torch.Tensor | None = None  # of a GPU, see the class
        self._counts = self._log_bytes = 0

    def _bind_params(
        self, slots: Mapping[str, Slot], n_floats: int, live: Float32 | None
    ) -> dict[str, Any]:
        torch.set_num_threads(self._threads)
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
            self._host, self._aliased = _host_view(self._flat)
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
        """Load a model read-only; arrays, but not mapped files, are used in place if possible."""
        if self.on_gpu:
            self._begin_to_count()
        return super().load(model, tensors, weights=weights)

    def with_adapter(
        self, model: ModelConfig, tensors: Mapping[str, NDArray[Any]]
    ) -> tuple[Self, list[str]]:
        """Return a model beside this one, see `InferenceModel`; each counts its own work."""
        other, not_finite = super().with_adapter(model, tensors)
        if self.on_gpu:
            other._begin_to_count()
        return other, not_finite

    def _load_tensor(self, tensor: NDArray[Any]) -> tuple[torch.Tensor, bool]:
        host, finite = _host_tensor(tensor, in_place=not self.on_gpu)
        return host.to(self.device), finite

    def _frozen_weight(self, value: FrozenWeight, is_base: bool) -> Any:
        weight = value.on(lambda part: _in_place(part).to(self.device))
        is_native = resolve("torch", self.kernels, self._device) == "native"
        # Only a gradient's base is multiplied in float32 where bfloat16 may be faster.
        return weight if is_base or value.bits or is_native else weight.parts[0]

    def refresh(self) -> None:
        """Make the device see the parameter buffer: by a copy, or the sync that torch asks for."""
        if self._aliased:
            torch.mps.synchronize()
        elif self.on_gpu:
            self._flat.copy_(self._host)

    def _tokens(self, tokens: Int32) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device).long()

    def loss_and_grads(self, batch: Batch) -> tuple[float, Grads]:
        """Return the mean cross entropy in nats and its gradient, by autograd."""
        check_batch(batch, self.model.vocab_size)
        began_ns = monotonic_ns()
        self._count()
        inputs = self._inputs(batch)
        leaves = {name: leaf.requires_grad_() for name, leaf in inputs.leaves.items()}
        loss = self._loss(leaves, *inputs.fixed)
        forward_ns = monotonic_ns() - began_ns
        every = list(leaves.values())  # also those that do not reach the loss, with zeros
        grads = torch.autograd.grad(loss, every, allow_unused=True, materialize_grads=True)
        *arrays, mean = self._on_hosts([*grads, loss])
        if not self.on_gpu:
            self.forward_share = forward_ns / (monotonic_ns() - began_ns)
        return mean.item(), self._by_rows(inputs, dict(zip(leaves, arrays, strict=True)))

    def _on_host(self, array: torch.Tensor) -> NDArray[Any]:
        return self._on_hosts([array])[0]

    def _on_hosts(self, tensors: Sequence[torch.Tensor]) -> list[NDArray[Any]]:
        """Return tensors as C-contiguous NumPy arrays, by one sync if the CPU has views of them."""
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
        """Raise LostGPU if the GPU aborted work since the last call."""
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

    @contextmanager
    def _no_grad(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)

    def _as_constant(self, state: State) -> State:
        # Autograd can save copies for a gradient, not tensors of inference_mode.
        return [tuple(part.clone() for part in block) for block in state]

    def close(self) -> None:
        """Drop the tensors that are views of the parameter buffer."""
        super().close()
        self._host = torch.empty(0)


def _size(fd: int) -> int:
    """Return the bytes of a readable file; 0 for a terminal, a pipe, or a write-only file."""
    mode = os.fstat(fd).st_mode
    readable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
    return os.fstat(fd).st_size if stat.S_ISREG(mode) and readable else 0


def _host_view(tensor: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return the CPU's view of a GPU's tensor and True, or CPU memory of its shape and False.

    torch has no view before 2.13, nor of memory that the CPU cannot access.
    """
    try:
        view = _alias(tensor)
    except (AttributeError, RuntimeError, ValueError):
        return torch.zeros(tensor.shape), False
    torch.mps.synchronize()
    return view, True


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor in the memory of one on the GPU, which stays alive with it.

    Call `torch.mps.synchronize` before it is read or written, and before the GPU's next work.
    Source: torch 2.13, `torch/mps/__init__.py`.
    """
    storage = torch.mps._host_alias_storage(tensor.untyped_storage())
    view = torch.empty(0, dtype=tensor.dtype)
    return view.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _in_place(array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor in the memory of an array, which may be read-only; it is never written."""
    bits = {np.dtype(np.uint32): np.int32, mapped.BFLOAT16: np.int16}.get(array.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        host = torch.from_numpy(array if bits is None else array.view(bits))
    return host.view(torch.bfloat16) if bits is np.int16 else host


def _host_tensor(tensor: NDArray[Any], *, in_place: bool) -> tuple[torch.Tensor, bool]:
    """Return a float32 tensor on the host, and whether every element is finite."""
    # A program may truncate a mapped file while the model is used.
    in_place = in_place and not mapped.is_mapped(tensor)
    if in_place and tensor.dtype == np.float32 and tensor.flags.c_contiguous:
        return _in_place(tensor), mapped.is_finite(tensor)
    # Memory of torch, not NumPy: NumPy asks for huge pages, which took the system seconds.
    host = torch.empty(tensor.shape)
    return host, mapped.copy(tensor, host.numpy())
