"""Packages that compute cells on a CPU, as built-in sides, each compared at what it claims.

A side's name is PACKAGE/SETTING. `peers_torch.py` and `peers_mlx.py` call the packages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from mlxhog.conformance.sides import own
from mlxhog.conformance.sides.foreign import CellSide, Sides
from mlxhog.conformance.subject import Array
from mlxhog.conformance.vectors.allowed import tolerances
from mlxhog.conformance.vectors.case import Case
from mlxhog.conformance.vectors.export import chosen
from mlxhog.errors import ConfigError, EnvironmentLacks, did_you_mean

NAME = "peers"
EXTRA = "python -m pip install -c constraints.txt 'mlxhog[peers]'"


def restated(case: Case, inputs: Mapping[str, Array], cotangents: Mapping[str, Array]) -> Case:
    """Return the case with other inputs or cotangents, and what is then expected."""
    (equations,) = chosen(case.equations)
    expected = equations.results(inputs, cotangents)
    allowed = tolerances(equations, inputs, cotangents, expected, case.dtypes)
    return replace(
        case, inputs=inputs, cotangents=cotangents, expected=expected, tolerances=allowed
    )


def behind_norm(case: Case) -> Case:
    """Return the case with a loss that no scale of a position's h changes, as behind a norm.

    The final state is not part of that loss.
    """
    h, dy = case.expected["h"], case.cotangents["h"]
    size = (h * h).sum(-1, keepdims=True)
    along = np.divide(
        (h * dy).sum(-1, keepdims=True), size, out=np.zeros_like(size), where=size > 0
    )
    return restated(case, case.inputs, {"h": (dy - along * h).astype(np.float32)})


def square(case: Case) -> Case:
    """Return the case with values as wide as keys."""
    K, wide = case.inputs["k"].shape[-1], ("v", "h", "state.C", "state.G")
    inputs, cotangents = (
        {name: x[..., :K] if name in wide else x for name, x in arrays.items()}
        for arrays in (case.inputs, case.cotangents)
    )
    return restated(case, inputs, cotangents)


@dataclass(frozen=True)
class Peer:
    """A function that calls a package, and settings in which that computes some equations."""

    package: str  # of its sides' names; the function's name
    distribution: str  # that has to be installed
    settings: Sequence[str]  # of a file and a function, the function is in the name
    equations: Sequence[str]
    claim: Callable[[Case], Case] | None = None  # what it claims to compute of a case
    says: str = ""  # the claim
    module: str = "peers_torch"
    function: str = ""  # of the module, of a whole model; else it is named as the package
    process: str = ""  # of its own

    def sides(self) -> Iterator[CellSide]:
        """Yield a side for each setting."""
        note = f"{self.distribution} {version_of(self.distribution)}"
        prefix = f"{self.package}/model+" if self.function else f"{self.package}/"
        for setting in self.settings:
            yield CellSide(
                prefix + setting.rpartition(":")[2],
                f"{__package__}.{self.module}:{self.function or self.package}",
                setting,
                self.process or self.distribution,
                self.equations,
                self.claim,
                f"{note}: {self.says}" if self.says else note,
            )


_AUTOGRAD, _CUSTOM = "chunkwise--native_autograd", "chunkwise--native_custbw"
_PARALLEL = "parallel--native_autograd"
_MODES = ("inference", "train", "train_with_padding")
_NORM = (
    "its backward pass has no gradient through the normalizer, which cancels behind the norm of a "
    "head; so the loss is one that no scale of h changes"
)
_SQUARE = "values are as wide as keys"


_OF_MODELS = [(mode, _AUTOGRAD) for mode in _MODES] + [("train", _CUSTOM)]


def _model(
    package: str, function: str, settings: Sequence[str], family: str = "xlstm-large", *,
    says: str = "", process: str = "",
) -> Peer:  # fmt: skip
    module = "peer_models_torch"
    return Peer(package, package, settings, (family,), None, says, module, function, process)


def _naive(file: str, functions: str, *equations: str) -> Peer:
    settings = [f"{file}:{one}" for one in functions.split()]
    claim = (square, _SQUARE) if file == "mesa_net" else ()
    return Peer("fla", "fla-core", settings, equations, *claim)


def _mlx_lm(setting: str, *equations: str) -> Peer:
    return Peer("mlx_lm", "mlx-lm", (setting,), equations, module="peers_mlx")


PEERS = (
    Peer(
        "mlstm_kernels", "mlstm_kernels",
        (_AUTOGRAD, _PARALLEL, "parallel--native_stablef_autograd", "sequence", "step",
         "inference"),
        ("mlstm",),
    ),
    Peer(
        "mlstm_kernels", "mlstm_kernels",
        (_CUSTOM, "parallel--native_custbw", "parallel--native_stablef_custbw"),
        ("mlstm",), behind_norm, _NORM,
    ),
    Peer("xlstm", "xlstm", ("parallel", "chunkwise", "step"), ("mlstm",), square, _SQUARE),
    Peer("xlstm", "xlstm", ("vanilla",), ("slstm",)),
    Peer(
        "transformers", "transformers",
        (*(f"{mode}+{_AUTOGRAD}" for mode in _MODES), f"train+{_PARALLEL}"),
        ("mlstm",), None, "with the xlstm package",
    ),
    Peer(
        "transformers", "transformers", [f"{mode}+{_CUSTOM}" for mode in _MODES],
        ("mlstm",), behind_norm, f"with the xlstm package; {_NORM}",
    ),
    Peer(
        "transformers", "transformers", [f"alone+{mode}" for mode in _MODES],
        ("mlstm",), None, "without the xlstm package", process="transformers alone",
    ),
    _model("xlstm", "xlstm_model", [f"{mode}+{kernel}" for mode, kernel in _OF_MODELS]),
    _model("xlstm", "xlstm_v1", ("sequence", "steps"), "xlstm-v1"),
    _model(
        "transformers", "transformers_model", [f"{mode}+{kernel}" for mode, kernel in _OF_MODELS]
    ),
    _model(
        "transformers", "transformers_model", [f"alone+{mode}" for mode in _MODES],
        says="without the xlstm package", process="transformers alone",
    ),
    _naive("gla", "naive_recurrent_gla", "gla"),
    _naive(
        "gated_delta_rule",
        "naive_recurrent_gated_delta_rule naive_chunk_gated_delta_rule",
        "gated-delta-rule",
    ),
    _naive("kda", "naive_recurrent_kda naive_chunk_kda", "kda"),
    _naive("generalized_delta_rule/dplr", "dplr_recurrence dplr_chunkwise", "dplr", "rwkv7"),
    _naive(
        "simple_gla",
        "naive_recurrent_simple_gla naive_chunk_simple_gla naive_parallel_simple_gla",
        "mamba2",
    ),
    _naive("gsa", "naive_recurrent_gsa", "gsa"),
    _naive("mesa_net", "naive_mesa_net_exact naive_mesa_net_CG", "mesa"),
    _mlx_lm("gated_delta_ops", "gated-delta-rule", "kda"),
    _mlx_lm("wkv7", "rwkv7"),
    _mlx_lm("ssm_attn", "mamba2"),
    _mlx_lm("ssm_step", "mamba"),
)  # fmt: skip
"""All peers."""

NOT_HERE = {
    "mlstm_kernels": "Triton kernels want a GPU of NVIDIA; parallel--native_siging has a sigmoid "
    "input gate, which are other equations",
    "transformers": "other kernels are those of mlstm_kernels; without the xlstm package there is "
    "one, whatever the config names",
    "fla": "Triton kernels want a GPU",
    "mlx_lm": "Metal kernels want a GPU of Apple",
}
"""What of a package is not compared."""


def choose(sides: Sides, equations: Sequence[str]) -> tuple[list[CellSide], list[str]]:
    """Return the sides that compute some of these equations, and notes on what is left out.

    Raises:
        ConfigError: an unknown name, a name twice, or a side that computes none of the equations.
        EnvironmentLacks: a peer that is named is not installed, or no side is left.
    """
    found, notes = list[CellSide](), list[str]()
    pairs = sides.items() if isinstance(sides, Mapping) else (one.split("=", 1) for one in sides)
    for name, *functions in pairs:
        if not functions:
            of_name, left_out = (own.sides(), []) if name == own.NAME else _peers(name, equations)
            able = [x for x in of_name if x.equations is None or {*x.equations} & {*equations}]
            found, notes = found + able, notes + left_out
            continue
        (function,) = functions
        if isinstance(function, str) and not all((name, *function.partition(":"))):
            raise ConfigError(
                f"--side {name}={function}: wanted NAME=module:function, such as mine=kernels:mlstm"
            )
        found.append(CellSide(name, function))
    names = [side.name for side in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--side: {twice[0]} is given twice; keep one, or give it another name")
    if not found:
        raise EnvironmentLacks(
            f"--side {NAME}: no package that computes these equations is installed: {EXTRA}"
        )
    return found, [*dict.fromkeys(notes)]


def _peers(name: str, equations: Sequence[str]) -> tuple[list[CellSide], list[str]]:
    """Return the peers of a package or setting; of all those that are installed."""
    known = [(side, peer) for peer in PEERS for side in peer.sides()]
    words = {NAME, *(peer.package for peer in PEERS), *(side.name for side, _ in known)}
    if name not in words:
        packages = ", ".join(dict.fromkeys(peer.package for peer in PEERS))
        raise ConfigError(
            f"--side {name}: no side has this name{did_you_mean(name, words)}; wanted "
            f"NAME=module:function, own, {NAME}, PACKAGE or PACKAGE/SETTING of {packages}"
        )
    of_name = [pair for pair in known if name in (NAME, pair[1].package, pair[0].name)]
    found, notes = list[CellSide](), list[str]()
    for side, peer in of_name:
        if not {*equations} & {*peer.equations}:
            continue
        if version_of(peer.distribution) is not None:
            found.append(side)
            if peer.package in NOT_HERE:
                notes.append(f"left out of {peer.package}: {NOT_HERE[peer.package]}")
        elif name == NAME:
            notes.append(f"left out: {peer.package}, which is not installed: {EXTRA}")
        else:
            raise EnvironmentLacks(f"--side {name} needs {peer.distribution}: {EXTRA}")
    if not found and not notes:
        there = sorted({one for _, peer in of_name for one in peer.equations})
        raise ConfigError(
            f"--side {name} does not compute {', '.join(equations)}; it has {', '.join(there)}"
        )
    return found, notes


def version_of(distribution: str) -> str | None:
    """Return the version of an installed package; None if there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
