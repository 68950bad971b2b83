"""Metal kernels through `torch.mps.compile_shader`: whole kernels, called by name on tensors.

Tensors are bound in place with their storage offset. torch does not synchronize, so `run` waits for
launches that write an input. torch passes Python numbers as 64-bit integers or 32-bit floats; their
first four bytes are the 32-bit argument of the kernel.

A text that does not compile is a SyntaxError (c10::SyntaxError), a missing kernel a RuntimeError.

Source: PyTorch documentation, torch.mps.compile_shader; torch/csrc/mps/Module.cpp,
torch/csrc/Exceptions.h.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlxhog.errors import UNLOADABLE, EnvironmentLacks, not_imported
from mlxhog.metal.engine import MetalEngine
from mlxhog.metal.kernel import Launch, MetalKernel, Size, amalgamated_source, number


class MPSEngine(MetalEngine):
    """Runs launches on the Apple GPU; arrays are MPS tensors."""

    name, framework = "mps", "MPS"

    def __init__(self, device: str = "mps") -> None:
        """Compile nothing yet: each kernel is compiled at its first launch, and kept.

        Args:
            device: device of the tensors; tests that replace `torch.mps` pass another one.

        Raises:
            EnvironmentLacks: torch sees no Apple GPU.
        """
        if not torch.backends.mps.is_available():
            raise EnvironmentLacks(
                "Metal kernels need an Apple GPU, and torch sees none; use --gpu-write cpu, or "
                "metal-emulated to try them out"
            )
        self._device = torch.device(device)
        self._functions: dict[str, Any] = {}
        self._wrapped: list[Any] = []  # MLX arrays whose memory our tensors use

    def array(self, host: NDArray[Any]) -> torch.Tensor:
        """Copy host values to an MPS tensor."""
        return torch.from_numpy(np.array(host)).to(self._device)

    def wrap(self, host: NDArray[Any]) -> torch.Tensor:
        """Import host memory through MLX: torch has no import of its own."""
        try:
            from mlxhog.metal.engine_mlx import wrap
        except UNLOADABLE as error:
            raise not_imported(
                "mlx",
                error,
                "torch alone cannot import host memory on the GPU; MLX does it: "
                "python -m pip install mlx, or use --gpu-write cpu",
            ) from error
        wrapped = wrap(host)
        try:
            tensor = torch.from_dlpack(wrapped)  # type: ignore[attr-defined]
        except (RuntimeError, BufferError, TypeError) as error:
            raise EnvironmentLacks(
                f"torch cannot share memory with this MLX ({error}); torch 2.12 and MLX 0.32.4 "
                "can: update both, or use --gpu-write cpu"
            ) from error
        if tensor.device.type != self._device.type:
            raise EnvironmentLacks(
                f"MLX lends this memory to torch on {tensor.device}, kernels need "
                f"{self._device.type}; use --gpu-write cpu"
            )
        self._wrapped.append(wrapped)  # never rebound: the tensor does not follow
        return tensor

    def host(self, array: torch.Tensor) -> NDArray[Any]:
        """Copy a tensor to the host, after all launches have ended."""
        values: NDArray[Any] = array.cpu().contiguous().numpy()
        return values

    def dtype_of(self, value: Any) -> str | None:
        """A tensor has to be row-major, since kernels take its storage."""
        ours = isinstance(value, torch.Tensor) and value.device.type == self._device.type
        return str(value.dtype).removeprefix("torch.") if ours and value.is_contiguous() else None

    def start(self, launch: Launch, threadgroup: Size) -> list[torch.Tensor]:
        """Launch a kernel of MPS; wait for one that writes an input."""
        kernel = launch.kernel
        outputs = [
            torch.empty(
                launch.outputs[one.name], dtype=getattr(torch, one.dtype), device=self._device
            )
            for one in kernel.outputs
        ]
        inputs = [(one, launch.inputs[one.name]) for one in kernel.inputs]
        arguments = [
            number(one, value) if one.scalar and not isinstance(value, torch.Tensor) else value
            for one, value in inputs
        ]
        function = self._function(kernel, launch.instance)
        function(*arguments, *outputs, threads=list(launch.grid), group_size=list(threadgroup))
        if any(one.writes for one in kernel.inputs):
            torch.mps.synchronize()
        return outputs

    def _function(self, kernel: MetalKernel, instance: str) -> Any:
        """The compiled kernel."""
        name = kernel.entry(instance)
        if name not in self._functions:
            library = torch.mps.compile_shader(amalgamated_source(kernel, instance))
            self._functions[name] = getattr(library, name)
        return self._functions[name]
