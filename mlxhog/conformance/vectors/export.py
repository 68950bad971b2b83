"""Make cases of equations, and write a set of them."""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from mlxhog.base import durable
from mlxhog.conformance.vectors.allowed import tolerances
from mlxhog.conformance.vectors.case import ENDINGS, FORMAT, MANIFEST, STEPS, Array, Case, listed
from mlxhog.conformance.vectors.cells import CELLS
from mlxhog.conformance.vectors.equations import DENORMAL, KINDS, Equations, Kind
from mlxhog.conformance.vectors.layers import LAYERS, MODELS
from mlxhog.display.views import TellStep
from mlxhog.errors import ConfigError, did_you_mean, shown
from mlxhog.models.ops.eager.ops_float64 import one_thread

VERSION = 1
"""Version of the sets; a change of their cases or tolerances raises it."""

PAGES = {"README.md": "FORMAT.md", "LICENSE": "CC0.txt"}
"""Pages of every export, and the files beside this one that have their text."""

EQUATIONS = CELLS | LAYERS | MODELS
SETS = {"small": CELLS | LAYERS, "all": EQUATIONS}


def make(equations: Equations, name: str, seed: int = 0, kind: Kind | None = None) -> Case:
    """Return a case of some equations, of one of `KINDS` or another; a seed draws other values."""
    kind = KINDS[name] if kind is None else kind
    inputs, cotangents = equations.draw(kind, seed)
    expected = equations.results(inputs, cotangents)
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    if kind.factor == DENORMAL:
        dtypes = dtypes[:1]
    allowed = tolerances(equations, inputs, cotangents, expected, dtypes)
    roles = {one.name: one.role for one in equations.tensors} | {"reset_mask": "reset_mask"}
    return Case(
        name=f"{equations.name}-{name}",
        equations=equations.name,
        version=equations.version,
        text=equations.text,
        about=kind.about,
        options=equations.options,
        dtypes=tuple(allowed),
        roles={name: roles[name] for name in inputs},
        inputs=inputs,
        cotangents=cotangents,
        expected=expected,
        checks=checks(expected),
        tolerances=allowed,
    )


def checks(expected: Mapping[str, Array]) -> dict[str, list[str]]:
    """Return the results that belong to each check."""
    gradients = [name for name in expected if name.startswith("grad.")]
    states = [name for name in expected if name.startswith("state.")]
    forward = [name for name in expected if name not in gradients + states]
    steps = [STEPS + name for name in forward + states if name != "loss"] if states else []
    return {"forward": forward, "states": states, "steps": steps, "gradients": gradients}


def chosen(subject: str) -> list[Equations]:
    """Return the equations of a subject.

    Raises:
        ConfigError: there are none of this name.
    """
    if subject in SETS:
        return [*SETS[subject].values()]
    if subject not in EQUATIONS:
        known = [*SETS, *EQUATIONS]
        raise ConfigError(
            f"there are no equations {subject!r} to export"
            + (did_you_mean(subject, known) or f"; choose one of {', '.join(known)}")
        )
    return [EQUATIONS[subject]]


def export(subject: str, folder: Path, observer: TellStep | None = None) -> list[str]:
    """Write the cases of a subject to a folder, whole or not at all; return their names.

    The folder may be absent, empty, or an earlier export without other files, which is replaced.
    `observer` is told the name of each case.

    Raises:
        ConfigError: there is no such subject, or the folder holds other files.
        EnvironmentLacks: the disk is full, or the system refuses.
    """
    equations = chosen(subject)
    target = check_folder(folder)
    tell, entries = observer or (lambda part, step: None), list[dict[str, str]]()
    with durable.disk_errors(f"writing {shown(str(folder))}"), ExitStack() as stack:
        durable.clear_remains(target)
        part = stack.enter_context(durable.new_directory(target, mark=f".{os.getpid()}"))
        stack.enter_context(one_thread())
        for one in equations:
            for kind in one.own_kinds:
                tell(f"{one.name}-{kind}", "")
                entries.append(make(one, kind).write(part))
        for name, source in PAGES.items():
            (part / name).write_bytes((Path(__file__).parent / source).read_bytes())
        manifest = {
            "format": FORMAT,
            "set": subject,
            "version": VERSION,
            "made_by": f"mlxhog {version('mlxhog')}",
            "cases": entries,
        }
        (part / MANIFEST).write_bytes(json.dumps(manifest, indent=1).encode() + b"\n")
    return [one["name"] for one in entries]


def check_folder(folder: Path) -> Path:
    """Return the absolute path of a folder that an export may write or replace.

    Raises:
        ConfigError: it is a file, holds other files, or cannot be made.
    """
    target = folder.resolve()
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{shown(str(folder))} is a file; name a folder for the vectors")
    parent = target.parent
    if target == Path.cwd() or not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise ConfigError(
            f"{shown(str(folder))} cannot be made or replaced; name a new folder, in one that "
            "exists and can be written"
        )
    present = {path.name for path in target.iterdir()} if target.is_dir() else set[str]()
    if present:
        known = {MANIFEST, *PAGES} if MANIFEST in present else set[str]()
        if known:
            known |= {f"{name}.{end}" for name in listed(target) for end in ENDINGS}
        if others := sorted(present - known):
            raise ConfigError(
                f"{shown(str(folder))} holds {shown(others[0])}, which is not of an export; name a "
                "new or empty folder, or move it away"
            )
    return target
