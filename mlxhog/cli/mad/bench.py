"""`mlxhog mad bench`: the score of given architectures."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import Flags
from mlxhog.cli.mad import study_flags
from mlxhog.cli.mad.study_flags import StudyConfig
from mlxhog.errors import ConfigError
from mlxhog.mad.study.execution import ExecutionConfig

if TYPE_CHECKING:
    from mlxhog.models.mad.config import MADConfig

ABOUT = """\
Score architectures over a suite of tasks: a study whose candidates are given, in which every run
goes to its end. The same line goes on after any kill, as mad resume does."""
EXAMPLES = (
    'mad bench --layers "mlstm swiglu mlstm swiglu" --suite smoke',
    'mad bench --layers "(mlstm swiglu)*2" --layers "(gla swiglu)*2" --suite lite --seeds 3',
    "mad bench --config arch.yaml --suite full --parallel 2 --study mine",
)


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad bench", ABOUT, EXAMPLES)
    flags.argument(
        "--layers", action="append", default=[], metavar="TEXT", help="an architecture's layers"
    )
    flags.argument(
        "-c", "--config", action="append", default=[], metavar="NAME_OR_FILE",
        help="an architecture; both flags may be given several times",
    )  # fmt: skip
    flags.argument("--seed", metavar="N", help="the one seed of every run, instead of --seeds")
    study_flags.add(flags)
    parsed = flags.parse(arguments)
    shared, how = study_flags.parts(parsed, StudyConfig, ExecutionConfig)
    if not parsed.other.layers and not parsed.other.config:
        raise ConfigError(f"give an architecture, as in mlxhog {EXAMPLES[0]}")
    if parsed.other.seed is not None:
        if any(given.name == "seeds" for given in parsed.given):
            raise ConfigError("--seed is the one seed of every run, --seeds are several; keep one")
        shared = replace(shared, seeds=f"{parsed.other.seed},")
    return _bench(shared, how, parsed)


def _bench(shared: StudyConfig, how: ExecutionConfig, parsed: Any) -> int:
    # These import NumPy: wrong flags are answered before.
    from mlxhog.cli.mad import study_session
    from mlxhog.machine import machine
    from mlxhog.mad.study.planning import Planning
    from mlxhog.mad.study.study import Study
    from mlxhog.models.mad.sequence import canonical, parse, read_architecture

    found = [read_architecture(name) for name in parsed.other.config]
    dim, position = _shared_sizes(found, shared.dim)
    texts = [canonical(parse(text)) for text in parsed.other.layers]
    texts += [canonical(architecture.layers) for architecture in found]
    study = Study(
        candidates=tuple(dict.fromkeys(texts)),
        suite=shared.suite or "smoke",
        dim=dim,
        position=position,
        **study_flags.common(shared, parsed),
    )
    planning = Planning(study)
    how.require(study, machine.here())
    name = parsed.other.study or _name(study.to_dict())
    return study_session.begin(study, planning, name, how, parsed.other)


def _shared_sizes(found: list[MADConfig], dim: int | None) -> tuple[int | None, str]:
    """Return width and positions of all architectures; files may say them.

    Raises:
        ConfigError: they differ.
    """
    widths = {architecture.hidden_size for architecture in found} if dim is None else {dim}
    positions = {architecture.position for architecture in found}
    if len(widths) > 1 or len(positions) > 1:
        raise ConfigError(
            f"the architectures have widths {sorted(widths)} and positions {sorted(positions)}; "
            "bench them one by one, or give --dim"
        )
    return next(iter(widths), None), next(iter(positions), "none")


def _name(definition: dict[str, Any]) -> str:
    """A name that the same line finds again."""
    text = json.dumps(definition, sort_keys=True)
    return f"bench-{definition['suite']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
