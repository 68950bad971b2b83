"""The operators of models, and the choice of plain, native and Metal ones: in this place alone."""

import importlib
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast

from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.metal import engine
from mlxhog.models.ops.arrays import Arrays

T = TypeVar("T")

CHOICES = ("auto", "reference", "native", "metal", "metal-emulated")

MODULES = {
    ("torch", "reference"): "mlxhog.models.ops.reference.ops_torch",
    ("mlx", "reference"): "mlxhog.models.ops.reference.ops_mlx",
    ("torch", "native"): "mlxhog.models.ops.native.adapter_torch",
    ("mlx", "native"): "mlxhog.models.ops.native.adapter_mlx",
}

ARRAYS = {"torch": "mlxhog.models.ops.arrays_torch", "mlx": "mlxhog.models.ops.arrays_mlx"}
METAL = {"torch": "mlxhog.models.ops.metal.ops_torch", "mlx": "mlxhog.models.ops.metal.ops_mlx"}
ENGINES = {
    ("torch", "metal"): "mps",
    ("mlx", "metal"): "mlx",
    ("torch", "metal-emulated"): "emulated:mps",
    ("mlx", "metal-emulated"): "emulated:mlx",
}

ACTIVATIONS = (
    "gelu",
    "gelu_tanh",
    "silu",
    "swish",
    "relu",
    "relu^2",
    "sigmoid",
    "selu",
    "softplus",
)
"""Activation functions of `activate` and `glu`, by the names of the xlstm package.

`silu` and `swish` are one. `gelu` is the exact one, x Phi(x), computed with erf; `gelu_tanh` is its
form with tanh. `softplus` is log(1 + e^x).
"""


class Ops(Protocol[T]):
    """The operators that a model is written in, for arrays of one framework, differentiable.

    The plain ones are `PlainOps`; `NativeOps` and `MetalOps` are the others.

    Gates, norms, states and sums are float32 whatever the type of the other inputs.

    Attributes:
        xp: the framework's array functions, named as in the Python array API standard.
    """

    xp: Arrays[T]

    def rms_norm(self, x: T, w: T, eps: float) -> T:
        """Return w * x / sqrt(mean(x^2) + eps) over the last axis; x (..., d), w (d,)."""

    def layer_norm(self, x: T, w: T, eps: float) -> T:
        """Return w * (x - mean(x)) / sqrt(var(x) + eps) over the last axis; x (..., d), w (d,).

        The variance is the biased one; the result has the type of x.
        """

    def head_norm(self, h: T, w: T, eps: float) -> T:
        """Return w * LayerNorm(h), normalised over DH within each head.

        h (B, S, NH, DH), w (NH * DH,); result (B, S, NH * DH), of the type of h.
        """

    def linears(
        self, x: T, weights: Sequence[T], biases: Sequence[T | None] | None = None
    ) -> tuple[T, ...]:
        """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in).

        Computed in the type of each weight, which may be bfloat16, and returned in that of x;
        likewise `block_diagonal`.
        """

    def block_diagonal(
        self, x: T, weights: Sequence[T], biases: Sequence[T | None] | None = None
    ) -> tuple[T, ...]:
        """Return x W^T + b of block-diagonal matrices, of each only its G blocks on the diagonal.

        x (..., in), every weight (G, out / G, in / G), every bias (out,) or None: result
        (..., out), whose slice g is slice g of x mapped by weight[g].
        """

    def causal_conv(
        self, x: T, w: T, b: T, *, state: T | None = None, starts: T | None = None, silu: bool
    ) -> tuple[T, T]:
        """Convolve every channel with its own taps: y[t] = b + sum_j w[j] x[t - (K - 1) + j].

        Args:
            x: (B, S, C).
            w: (C, 1, K), K from 1 on; the last tap meets the position itself.
            b: (C,).
            state: (B, K - 1, C), the inputs before the first position; None is all zeros.
            starts: (B, S) bool, the first token of each document: no tap reaches over one.
            silu: return silu(y).

        Returns:
            y (B, S, C), of the type of x, and the state after the last position, float32: the last
            K - 1 inputs, of which those of earlier documents are zero.
        """

    def activate(self, x: T, activation: str) -> T:
        """Return act(x); `activation` is one of `ACTIVATIONS`.

        Raises:
            ConfigError: there is no such activation.
        """

    def glu(self, gate: T, up: T, activation: str) -> T:
        """Return act(gate) * up; both of one shape, `activation` one of `ACTIVATIONS`.

        Raises:
            ConfigError: there is no such activation.
        """

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
            h (B, S, NH, DV) and the state after the last position, float32. Gradients are exact,
            those through m included.
        """

    def slstm_cell(
        self,
        i: T,
        f: T,
        z: T,
        o: T,
        R: T,
        b: T,
        *,
        state: Sequence[T] | None = None,
        starts: T | None = None,
    ) -> tuple[T, tuple[T, T, T, T]]:
        """Run the sLSTM cell over a sequence of any length from 1 on.

        Args:
            i: (B, S, NH, DH), pre-activation of the input gate from the input alone.
            f: as i, of the forget gate, a sigmoid.
            z: as i, of the cell's input.
            o: as i, of the output gate.
            R: (NH, 4 * DH, DH), recurrent matrices, from the last index, as the xlstm package
                stores them for the CPU; rows gate by gate, i, f, z, o.
            b: (4 * NH * DH,), biases, gate by gate.
            state: h, c, n and m before the first position, (B, NH, DH) each; None is all zeros.
            starts: (B, S) bool or uint8, true at the first token of a document, before which the
                whole state counts as zero.

        Returns:
            h (B, S, NH, DH) and the state after the last position, float32, with exact gradients.
            The stabiliser m starts at the input gate where n is 0. The published code asks whether
            all of n is; that is the same for every state the cell reaches, and here the rows of a
            batch do not depend on each other.
        """

    def rope(self, x: T, base: float, offset: T | None = None) -> T:
        """Turn pair i of every head, elements i and DH / 2 + i, by t * base^(-2 i / DH).

        Args:
            x: (B, S, NH, DH), DH even.
            base: of the wavelengths.
            offset: (B,) int32, positions before the first; t counts on from there. None is 0.

        Returns:
            As x. Source: Su et al. 2021, RoFormer, arXiv:2104.09864.
        """

    def attention(
        self, q: T, k: T, v: T, *, window: int | None = None, lengths: T | None = None
    ) -> T:
        """Return softmax(q k^T / sqrt(DH)) v over the keys up to each query's own.

        Args:
            q: (B, S, NH, DH).
            k: (B, L, NH, DH), L >= S: the last S keys are those of the queries' positions.
            v: as k.
            window: keys further back than this many positions are out of sight; None is no bound.
            lengths: (B,) int32, S <= lengths <= L: only that many of a row's last keys exist, those
                before are padding. None is L.

        Returns:
            (B, S, NH, DH).
        """

    def decay_cell(
        self,
        q: T,
        k: T,
        v: T,
        log_decay: T,
        *,
        scale: float,
        chunk_size: int,
        state: T | None = None,
    ) -> tuple[T, T]:
        """Run S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T, h_t = scale S_t^T q_t.

        Args:
            q: (B, S, NH, DK).
            k: as q.
            v: (B, S, NH, DV).
            log_decay: (B, S, NH, DK), or (B, S, NH, 1) for one of the whole head; at most 0, of any
                size: no form of it may overflow.
            scale: of h.
            chunk_size: positions computed in parallel, a power of 2.
            state: S before the first position, (B, NH, DK, DV); None is zeros.

        Returns:
            h (B, S, NH, DV) and S after the last position, float32, with exact gradients.
        """

    def delta_cell(
        self,
        q: T,
        k: T,
        v: T,
        log_decay: T,
        beta: T,
        *,
        chunk_size: int,
        state: T | None = None,
    ) -> tuple[T, T]:
        """Run the gated delta rule.

        a_t = exp(log_decay_t), S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,
        h_t = S_t^T q_t.

        Args:
            q: (B, S, NH, DK).
            k: as q; no key longer than 1, or the state may grow without bound.
            v: (B, S, NH, DV).
            log_decay: (B, S, NH), at most 0.
            beta: (B, S, NH), in [0, 2].
            chunk_size: positions computed in parallel, a power of 2.
            state: S before the first position, (B, NH, DK, DV); None is zeros.

        Returns:
            h (B, S, NH, DV) and S after the last position, float32, with exact gradients.
        """

    def selective_scan(
        self, u: T, dt: T, A: T, Bt: T, Ct: T, *, state: T | None = None
    ) -> tuple[T, T]:
        """Run S_t[c] = exp(dt_t[c] A[c]) S_{t-1}[c] + dt_t[c] u_t[c] Bt_t, y_t[c] = S_t[c] . Ct_t.

        Args:
            u: (B, S, C).
            dt: as u, at least 0.
            A: (C, N), at most 0.
            Bt: (B, S, N).
            Ct: as Bt.
            state: S before the first position, (B, C, N); None is zeros.

        Returns:
            y (B, S, C) and S after the last position, float32, with exact gradients.
        """

    def long_conv(self, x: T, f: T) -> T:
        """Return y[b, t, c] = sum over j <= t of f[c, j] x[b, t - j, c]; x (B, S, C).

        f (C, J), J >= S, of which the first S taps count. Transforms of padded sequences may be
        used, so each entry's error is relative to the largest of its channel.
        """

    def head_norm_gate(self, h: T, o: T, w: T, eps: float) -> T:
        """Return sigmoid(o) * (w * LayerNorm(h)), normalised over DV within each head.

        h (B, S, NH, DV), o (B, S, NH * DV), w (NH * DV,); result as o.
        """

    def head_norm_skip_gate(self, h: T, c: T, z: T, w: T, skip: T, eps: float) -> T:
        """Return (w * LayerNorm(h) + skip * c) * silu(z), normalised over DV within each head.

        h (B, S, NH, DV); c and z (B, S, NH * DV); w and skip (NH * DV,); result as z.
        """

    def capped_cross_entropy(self, raw_logits: T, labels: T, cap: float | None) -> tuple[T, T]:
        """Return the summed cross entropy in nats of the capped logits, and how many it sums.

        raw_logits (N, V), labels (N,) integer, -100 is left out; a cap of None leaves the logits
        as they are; both results are scalars.
        """


def activation_name(name: str) -> str:
    """Return the name of an activation function, `silu` for `swish`.

    Raises:
        ConfigError: it is none of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation is {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    return "silu" if name == "swish" else name


def arrays(framework: str) -> Arrays[Any]:
    """Return the array functions of "torch" or "mlx"."""
    return cast(Arrays[Any], _load(ARRAYS[framework]))


def choose(framework: str, kernels: str, device: str) -> Ops[Any]:
    """Return the ops of a framework; arguments and errors as `resolve`."""
    kernels = resolve(framework, kernels, device)
    if (framework, kernels) in ENGINES:
        return _metal(framework, ENGINES[framework, kernels])
    return cast(Ops[Any], _load(MODULES[framework, kernels]).OPS)


def resolve(
    framework: str,
    kernels: str,
    device: str,
    *,
    metal_verified: bool = False,
    weights: str = "float32",
) -> str:
    """Return which ops a choice means on a device: one of `CHOICES` other than "auto".

    Args:
        framework: "torch" or "mlx".
        kernels: "reference" for the plain ops of the framework, which run on every device;
            "native" for the C++ kernels, which run on the CPU; "metal" for the Metal kernels, on an
            Apple GPU; "metal-emulated" for their source run on the CPU by the host shim, for tests;
            "auto" for native on a CPU where it is built, for metal on a GPU where it is verified,
            else for reference.
        device: where the arrays live: "cpu", "gpu" or "mps".
        metal_verified: `mlxhog doctor` found on this machine that the Metal kernels agree with
            their references and are worth it, see `Verdicts.model_kernels`.
        weights: type of the matrices in products that are not quantised. The native kernels take
            float32 alone, so with another one "auto" is reference on a CPU.

    Raises:
        ConfigError: `kernels` is none of these, or does not run on that device, or not with such
            weights.
        EnvironmentLacks: "native" was asked for and is not built.
    """
    if kernels not in CHOICES:
        raise ConfigError(f"kernels is {kernels!r}; choose one of {', '.join(CHOICES)}")
    if kernels != "reference" and kernels != "auto" and (kernels == "metal") == (device == "cpu"):
        raise ConfigError(
            f"kernels is {kernels!r}, which {framework}:{device} cannot run; use auto, which "
            "gives each worker what its device can run, or other workers"
        )
    native = MODULES[framework, "native"]
    if weights != "float32" and device == "cpu":
        if kernels == "native":
            raise ConfigError(
                f"kernels is 'native', which cannot compute with {weights} weights; use auto, or "
                "float32"
            )
        return "reference" if kernels == "auto" else kernels
    if kernels == "auto" and device == "cpu":
        return "native" if _exists(native) else "reference"
    if kernels == "auto":
        return "metal" if metal_verified else "reference"
    if kernels == "native" and not _exists(native):
        raise EnvironmentLacks(f"{native} is not built; set kernels to auto or reference")
    return kernels


@lru_cache
def _metal(framework: str, engine_name: str) -> Ops[Any]:
    ops: Ops[Any] = _load(METAL[framework]).MetalOps(engine.create(engine_name))
    return ops


@lru_cache
def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@lru_cache
def _load(module: str) -> ModuleType:
    return importlib.import_module(module)
