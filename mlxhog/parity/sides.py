"""The sides of a comparison: NumPy, each backend with each form of its kernels, and peers.

numpy                   float64, the reference of the others
torch:cpu, mlx:cpu ..   a backend with the kernels that training would use there
torch:cpu+reference     the same backend with another form of its kernels
transformers, xlstm     the peers, where the extra [peers] is installed and they can build it
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from mlxhog.backends import kernel_choice
from mlxhog.config.options import did_you_mean
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.machine import machine, verdicts
from mlxhog.machine.workers import BACKENDS, GPU_BACKENDS, missing
from mlxhog.models import families
from mlxhog.models.mad import MADConfig
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.parity.subject import ModelPlan, Plan

TRANSFORMERS, XLSTM = "transformers", "xlstm"
PEERS = (TRANSFORMERS, XLSTM)
NUMPY = "numpy"
EVERYONE = (NUMPY, "torch:cpu", "mlx:cpu", "torch:mps", "mlx:gpu", *PEERS)


@dataclass(frozen=True)
class Side:
    """One that computes.

    Attributes:
        name: as above.
        backend: one of `EVERYONE`; those of one backend share a process.
        kernels: form of the operators; "" where there is one form only.
    """

    name: str
    backend: str
    kernels: str = ""

    @property
    def float64(self) -> bool:
        """Whether it computes in float64."""
        return self.backend == NUMPY


def choose(backends: str, forms: str, plan: Plan) -> tuple[list[Side], list[str]]:
    """Return the sides, the reference first, and notes on what is not there.

    Args:
        backends: "auto" for everything present, or a list of `EVERYONE`, by commas.
        forms: "all" of every backend, or one of `kernels.CHOICES`.
        plan: what they are to compute; peers compute models, and not all of them.

    Raises:
        ConfigError: an unknown name, or kernels that a backend cannot run.
        EnvironmentLacks: a backend that was asked for by name is not here.
    """
    here = machine.here()
    asked = [] if backends == "auto" else [name.strip() for name in backends.split(",")]
    for name in asked:
        if name not in EVERYONE:
            raise ConfigError(
                f"--backends: no backend {name!r}; wanted auto, or some of "
                f"{', '.join(EVERYONE)}{did_you_mean(name, EVERYONE)}"
            )
    sides: list[Side] = []
    notes = []
    for name in EVERYONE:
        if asked and name not in asked:
            continue
        lack = lacking(name, here, plan)
        if lack is None:
            sides += _of_backend(name, forms)
        elif asked:
            raise EnvironmentLacks(lack)
        elif name not in GPU_BACKENDS or here.apple_gpu:
            notes.append(f"left out: {lack}")
    return sides, notes


def lacking(name: str, here: machine.Machine, plan: Plan) -> str | None:
    """Say what keeps a backend or peer from computing it here, or None."""
    if name in BACKENDS:
        return missing(name, here)
    if name not in PEERS:
        return None
    if not _installed(name):
        return f"{name} is not installed: python -m pip install 'mlxhog[peers]'"
    return not_computable(name, plan)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _of_backend(name: str, forms: str) -> Sequence[Side]:
    if name not in BACKENDS:
        return [Side(name, name)]
    usual = kernel_choice.of_backend("auto", name, verdicts.load())
    if forms != "all":
        form = kernel_choice.of_backend(forms, name, verdicts.load())
        return [Side(name if form == usual else f"{name}+{form}", name, form)]
    framework, device = name.split(":")
    others = ["reference"] if device == "cpu" else ["reference", "metal"]
    return [
        Side(name, name, usual),
        *(Side(f"{name}+{form}", name, form) for form in others if form != usual),
    ]


def not_computable(name: str, plan: Plan) -> str | None:
    """Say why a peer cannot compute a plan, or None where it can."""
    if not isinstance(plan, ModelPlan):
        return f"{name} computes models, no operators alone"
    cfg = plan.cfg
    if isinstance(cfg, MADConfig):
        return f"{name} has no models of MAD layers"
    if families.reset_token(cfg) is not None:
        return f"{name} does not reset at document boundaries"
    if isinstance(cfg, XLSTMLargeConfig):
        if name == TRANSFORMERS and not cfg.add_out_norm:
            return "transformers 5.23 applies out_norm although add_out_norm is false"
        if name == TRANSFORMERS and cfg.out_norm_bias:
            return "transformers' out_norm has no bias"
        if cfg.tie_word_embeddings:
            return f"{name} does not tie its embeddings"
    elif name == TRANSFORMERS:
        return "transformers has no v1 stack"
    return None
