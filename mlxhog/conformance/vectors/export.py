"""Make cases of equations, and write a set of them."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from mlxhog.base import durable
from mlxhog.conformance.vectors.allowed import tolerances
from mlxhog.conformance.vectors.case import FORMAT, MANIFEST, STEPS, Array, Case
from mlxhog.conformance.vectors.cells import CELLS
from mlxhog.conformance.vectors.equations import DENORMAL, KINDS, Equations
from mlxhog.errors import ConfigError, did_you_mean

SUBJECTS = ("small",)


def make(equations: Equations, kind: str, seed: int = 0) -> Case:
    """Return a case of some equations, of one of their kinds; a seed draws other values."""
    inputs, cotangents = equations.draw(KINDS[kind], seed)
    expected = equations.results(inputs, cotangents)
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    if KINDS[kind].factor == DENORMAL:
        dtypes = dtypes[:1]
    allowed = tolerances(equations, inputs, cotangents, expected, dtypes)
    roles = {one.name: one.role for one in equations.tensors} | {"reset_mask": "reset_mask"}
    return Case(
        name=f"{equations.name}-{kind}",
        equations=equations.name,
        version=equations.version,
        text=equations.text,
        about=KINDS[kind].about,
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
    steps = [STEPS + name for name in forward + states] if states else []
    return {"forward": forward, "states": states, "steps": steps, "gradients": gradients}


def chosen(subject: str) -> list[Equations]:
    """Return the equations of a subject.

    Raises:
        ConfigError: there are none of this name.
    """
    if subject in SUBJECTS:
        return [*CELLS.values()]
    if subject not in CELLS:
        known = [*SUBJECTS, *CELLS]
        raise ConfigError(
            f"there are no equations {subject!r} to export{did_you_mean(subject, known)}; choose "
            f"one of {', '.join(known)}"
        )
    return [CELLS[subject]]


def export(subject: str, folder: Path) -> Sequence[str]:
    """Write the cases of a subject to a folder, whole or not at all; return their names.

    Raises:
        ConfigError: there is no such subject, or the folder holds other files.
    """
    equations = chosen(subject)
    with durable.new_directory(folder) as part:
        entries = [
            make(one, kind).write(part)
            for one in equations
            for kind in one.kinds
            if one.resets or not KINDS[kind].resets
        ]
        manifest = {
            "format": FORMAT,
            "set": subject,
            "version": 1,
            "made_by": f"mlxhog {version('mlxhog')}",
            "cases": entries,
        }
        (part / MANIFEST).write_bytes(json.dumps(manifest, indent=1).encode() + b"\n")
    return [one["name"] for one in entries]
