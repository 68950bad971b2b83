"""The one place that chooses between the plain reference ops and the native CPU kernels."""

import importlib
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast

from mlxhog.errors import ConfigError, EnvironmentLacks

T = TypeVar("T")

CHOICES = ("auto", "reference", "native")

MODULES = {
    ("torch", "reference"): "mlxhog.models.ops_torch",
    ("mlx", "reference"): "mlxhog.models.ops_mlx",
    ("torch", "native"): "mlxhog.models.native_torch",
    ("mlx", "native"): "mlxhog.models.native_mlx",
}


class Ops(Protocol[T]):
    """What every module in `MODULES` offers, for arrays of one framework, differentiable.

    Gates, norms, states and sums are float32 whatever the type of the other inputs.
    """

    def rms_norm(self, x: T, w: T, eps: float) -> T:
        """Return w * x / sqrt(mean(x^2) + eps) over the last axis; x (..., d), w (d,)."""

    def linears(
        self, x: T, weights: Sequence[T], biases: Sequence[T | None] | None = None
    ) -> tuple[T, ...]:
        """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in)."""

    def swiglu(self, gate: T, up: T) -> T:
        """Return silu(gate) * up; both of one shape."""

    def soft_cap(self, x: T, c: float) -> T:
        """Return c * tanh(x / c)."""

    def mlstm_cell(
        self,
        q: T,
        k: T,
        v: T,
        i: T,
        f: T,
        *,
        chunk_size: int,
        eps: float,
        state: Sequence[T] | None = None,
    ) -> tuple[T, tuple[T, T, T]]:
        """Run the mLSTM cell over a sequence of any length, or one step where S = 1.

        Args:
            q: (B, S, NH, DK).
            k: as q.
            v: (B, S, NH, DV).
            i: (B, S, NH), input-gate pre-activation after the soft cap.
            f: as i, of the forget gate.
            chunk_size: positions computed in parallel.
            eps: added to the denominator.
            state: C (B, NH, DK, DV), n (B, NH, DK), m (B, NH); None is all zeros.

        Returns:
            h (B, S, NH, DV) and the state after the last position, float32. The stabiliser m
            is constant for gradients.
        """

    def head_norm_gate(self, h: T, o: T, w: T, eps: float) -> T:
        """Return sigmoid(o) * (w * LayerNorm(h)), normalised over DV within each head.

        h (B, S, NH, DV), o (B, S, NH * DV), w (NH * DV,); result as o.
        """

    def capped_cross_entropy(self, raw_logits: T, labels: T, cap: float) -> tuple[T, T]:
        """Return the summed cross entropy in nats of the capped logits, and how many it sums.

        raw_logits (N, V), labels (N,) integer, -100 is left out; both results are scalars.
        """


def choose(framework: str, kernels: str, device: str) -> Ops[Any]:
    """Return the ops that the twin of `framework` calls.

    Args:
        framework: "torch" or "mlx".
        kernels: "reference" for the plain ops of the framework, which run on every device;
            "native" for the C++ kernels, which run on the CPU; "auto" for native where it can run.
        device: where the arrays live: "cpu", "gpu" or "mps".

    Raises:
        ConfigError: `kernels` is none of these, or is "native" on a device that is not a CPU.
        EnvironmentLacks: "native" was asked for and is not built.
    """
    if kernels not in CHOICES:
        raise ConfigError(f"kernels is {kernels!r}; choose one of {', '.join(CHOICES)}")
    if kernels == "native" and device != "cpu":
        raise ConfigError(f"kernels is 'native' on {framework}:{device}; set it to auto there")
    native = MODULES[framework, "native"]
    if kernels == "reference" or device != "cpu" or (kernels == "auto" and not _exists(native)):
        return cast(Ops[Any], _load(MODULES[framework, "reference"]))
    if not _exists(native):
        raise EnvironmentLacks(f"{native} is not built; set kernels to auto or reference")
    return cast(Ops[Any], _load(native))


@lru_cache
def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@lru_cache
def _load(module: str) -> ModuleType:
    return importlib.import_module(module)
