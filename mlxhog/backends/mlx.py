"""MLX as a backend: "mlx:cpu", and "mlx:gpu" as a device variant of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Slot
from mlxhog.arena.process import monotonic_ns
from mlxhog.backends.backend import Backend, Grads, Inputs
from mlxhog.backends.gpu_share import GPUShare, MLXCache, limit_mlx
from mlxhog.backends.inference import State, check_batch
from mlxhog.base import mapped
from mlxhog.data.batch import Batch
from mlxhog.errors import UNLOADABLE, ConfigError, EnvironmentLacks, not_imported
from mlxhog.metal.engines import wrappable
from mlxhog.models.activations import activations
from mlxhog.models.ops.frozen import FrozenWeight
from mlxhog.models.ops.kernels import resolve
from mlxhog.optim.gradients import Float32, Int32


class MLXBackend(Backend):
    """MLX on one device; the parameter buffer is a NumPy view of the flat array of parameters.

    MLX's arrays are in host memory on both devices, so a write to the parameter buffer between two
    evaluations needs no refresh. The reference to the flat array keeps MLX from reusing its buffer.

    MLX binds its streams to threads, and a lazy array to its stream. Weights and states are never
    lazy, so one thread may load a model and others read it; `loss_and_grads` is for one thread.
    """

    def __init__(
        self, name: str, *, threads: int, kernels: str, share: GPUShare,
        compiled: bool | None = None, bf16_matmuls: bool = False,
    ) -> None:  # fmt: skip
        """Import MLX, and choose the device.

        Arguments and errors are those of `create`; `compiled` says whether `mx.compile` fuses the
        operations of a gradient, by default on a GPU. It cannot with native or emulated kernels.
        """
        if os.environ.get("MLX_METAL_FAST_SYNCH"):
            raise EnvironmentLacks(
                "MLX_METAL_FAST_SYNCH is set: its GPU spins can lock the machine (mlx issue 3830); "
                "unset it"
            )
        try:
            import mlx.core as mx
        except UNLOADABLE as error:
            raise not_imported(
                "mlx",
                error,
                "backend mlx needs the package mlx: python -m pip install 'mlx[cpu]' on Linux, "
                "python -m pip install mlx on a Mac",
            ) from error
        from mlxhog.models.ops.native import adapter_mlx as native_mlx

        native_mlx.set_threads(threads)
        self._native = native_mlx
        if name == "mlx:gpu" and not mx.metal.is_available():
            raise EnvironmentLacks(
                f"backend mlx:gpu needs Metal; this is {platform.system()} on "
                f"{platform.machine()}; use mlx:cpu"
            )
        super().__init__("mlx", name.partition(":")[2], kernels, threads, share, bf16_matmuls)
        self._cache = MLXCache(mx)
        if mx.metal.is_available():  # then arrays of the CPU are in the GPU's memory, too
            self._cache = limit_mlx(mx, share, on_gpu=self.on_gpu)
        self.compiled = self.on_gpu if compiled is None else compiled
        self._mx = mx
        self._built_ns = 0  # when the newest forward pass was built

    def _bind_params(
        self, slots: Mapping[str, Slot], n_floats: int, live: Float32 | None
    ) -> dict[str, Any]:
        from mlx.utils import tree_map

        mx = self._mx
        with _stream(mx, self._device):
            if live is None:
                self._flat = mx.zeros(n_floats)
                mx.eval(self._flat)
            elif mx.metal.is_available():
                from mlxhog.metal.engine_mlx import wrap

                self._flat = wrap(wrappable(live))
            else:
                raise ConfigError(
                    f"--read live: {self.name} can only copy host memory without Metal; "
                    "use --read snapshot, or torch:cpu workers"
                )
            self.param_buffer = np.array(self._flat, copy=False) if live is None else live
            params = {
                name: self._flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
                for name, slot in slots.items()
            }
            mx.eval(list(params.values()))
        differentiated = mx.value_and_grad(self._timed_loss)

        def gradient(*inputs: Any) -> Any:
            """Return the loss, and its gradients, row-major: NumPy copies others on one core."""
            loss, grads = differentiated(*inputs)
            return loss, tree_map(mx.contiguous, grads)

        # Parameters are inputs: a captured array would become a constant.
        self._value_and_grad = mx.compile(gradient) if self.compiled else gradient
        return params

    def _load_tensor(self, tensor: NDArray[Any]) -> tuple[Any, bool]:
        mx = self._mx
        with _stream(mx, self._device):
            array = mx.zeros(tensor.shape)
            mx.eval(array)
            return array, mapped.copy(tensor, np.array(array, copy=False))

    def _frozen_weight(self, value: FrozenWeight, is_base: bool) -> Any:
        if resolve("mlx", self.kernels, self._device) == "native":
            return value  # native operators read NumPy's arrays where they lie
        with _stream(self._mx, self._device):
            weight = value.on(self._imported)
        # Only a gradient's base is multiplied in float32 on a GPU, where bfloat16 is faster.
        return weight if is_base or value.bits else weight.parts[0]

    def _imported(self, part: NDArray[Any]) -> Any:
        """Return an array with the elements of `part`: by Metal in its memory, if it is mapped."""
        mx, is_bf16 = self._mx, part.dtype == mapped.BFLOAT16
        part = part.view(np.uint16) if is_bf16 else part  # the buffer protocol has no bfloat16
        if mx.metal.is_available() and mapped.is_mapped(part):
            from mlxhog.metal.engine_mlx import wrap

            pages, first = mapped.whole_pages(part)
            array = wrap(wrappable(pages))[first : first + part.size].reshape(part.shape)
        else:
            array = mx.array(mapped.in_memory(part))
        array = array.view(mx.bfloat16) if is_bf16 else array
        mx.eval(array)  # a lazy view could not leave this thread
        return array

    def _timed_loss(self, leaves: Any, *fixed: Any) -> Any:
        loss = self._loss(leaves, *fixed)
        self._built_ns = monotonic_ns()
        return loss

    def loss_and_grads(self, batch: Batch) -> tuple[float, Grads]:
        """Return the mean cross entropy in nats and its gradient, by `mx.value_and_grad`.

        Native operators compute while the graph is built, first forward, then backward; the others
        when it is evaluated. On a CPU the loss is evaluated first, so that the forward pass can be
        timed: the operations and their order are the same.
        """
        check_batch(batch, self.model.vocab_size)
        began_ns, mx = monotonic_ns(), self._mx
        with _stream(mx, self._device):
            inputs = self._inputs(batch)
            # malloc keeps freed memory for both, but native code has no use for MLX's cache.
            is_shared = self.recompute and self._ops().evaluates
            planned = self._planned_bytes(inputs) if self.recompute and not is_shared else None
            with nullcontext() if is_shared else self._cache.of_gradient(planned):
                loss, grads = self._value_and_grad(inputs.leaves, *inputs.fixed)
                if self.on_gpu or self.compiled:
                    self._eval(loss, grads)
                else:
                    graph_ns = monotonic_ns()
                    mx.eval(loss)
                    forward_ns = self._built_ns - began_ns + monotonic_ns() - graph_ns
                    mx.eval(grads)
                    self.forward_share = forward_ns / (monotonic_ns() - began_ns)
            grads = {name: self._on_host(grad) for name, grad in grads.items()}
            return self._on_host(loss).item(), self._by_rows(inputs, grads)

    def _planned_bytes(self, inputs: Inputs) -> int:
        """Return the memory of a gradient with recomputed blocks at which MLX waits.

        It is below the plan's estimate, since MLX waits after the array that exceeds it.
        """
        drawn = None if inputs.candidates is None else inputs.candidates.count
        kernels = resolve("mlx", self.kernels, self._device)
        kept = activations(
            self.model, "mlx", kernels, length=inputs.tokens.shape[1], candidates=drawn,
            dtype="bfloat16" if self.bf16_matmuls else "float32", recompute="blocks",
        )  # fmt: skip
        largest: int = max(leaf.nbytes for leaf in inputs.leaves.values())
        return kept.peak(inputs.tokens.size) - largest

    def _tokens(self, tokens: Int32) -> Any:
        return self._mx.array(tokens)

    def _eval(self, *arrays: Any) -> None:
        """Evaluate arrays; an error has the names of Metal kernels, see `MLXEngine.naming`."""
        ops: Any = self._ops()
        with ops.engine.naming() if self.kernels == "metal" else nullcontext():
            self._mx.eval(*arrays)

    def _on_host(self, array: Any) -> NDArray[Any]:
        """Return a view of an array; a copy if it is not row-contiguous."""
        self._eval(array)
        return np.ascontiguousarray(np.array(array, copy=False))

    def _from_host(self, array: Float32) -> Any:
        return self._mx.array(array)

    @contextmanager
    def _no_grad(self) -> Iterator[None]:
        with _stream(self._mx, self._device), self._native.without_gradient():
            yield

    def _evaluated(self, state: State) -> State:
        self._eval(state)
        return state

    _as_constant = _evaluated


def _stream(mx: ModuleType, device: str) -> AbstractContextManager[Any]:
    """Run the operations of the block on "cpu" or "gpu": a process may have backends on both."""
    context: AbstractContextManager[Any] = mx.stream(
        mx.Device(mx.gpu if device == "gpu" else mx.cpu, 0)
    )
    return context
