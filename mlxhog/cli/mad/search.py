"""`mlxhog mad search`: from a space of architectures to a leaderboard."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxhog.cli.flags import Flags
from mlxhog.cli.mad import study_flags
from mlxhog.cli.mad.study_flags import StudyConfig
from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.mad.study.execution import ExecutionConfig

ABOUT = """\
Search a space of architectures: train candidates on every setting of a suite, several at once, and
keep every result in studies/NAME. Kill it at any time: the same line goes on, or mad resume.
One Ctrl-C lets the runs in progress end, a second one drops them.

The space is a YAML file, or space-small or space-xlstm of the package. The shortest one:

  space: {depth: 4, mixers: [mlstm, mh-attention], channels: [swiglu]}"""
EXAMPLES = (
    "mad search --space space-small --suite smoke --parallel 2 --study first",
    "mad search --space space.yaml --suite lite --sampler evolution --budget 2h --seeds 3",
    "mad search --space space.yaml --no-prune --executor ray --study first",
    "mad search --space space.yaml --suite full --dry-run",
)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Options of `mlxhog mad search` beside those of every study."""

    space: str | None = option(None, "the search space: a YAML file or a name")
    sampler: str = option(
        "grid",
        "who proposes candidates; tpe needs the extra [search]",
        choices=("grid", "random", "evolution", "tpe"),
    )
    prune: bool = option(True, "end runs early whose candidate is among the worst at a rung")
    seed: int = option(0, "of the sampler", low=0, high=2**32 - 1)


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad search", ABOUT, EXAMPLES)
    flags.argument("--no-prune", action="store_true", help="every run goes on to its end")
    study_flags.add(flags, SearchConfig)
    parsed = flags.parse(arguments)
    given, shared, how = study_flags.parts(parsed, SearchConfig, StudyConfig, ExecutionConfig)
    if given.space is None:
        raise ConfigError(f"give the space of architectures, as in mlxhog {EXAMPLES[0]}")
    if parsed.other.no_prune:
        if any(one.name == "prune" for one in parsed.given):
            raise ConfigError("--prune and --no-prune are both given; keep one")
        given = replace(given, prune=False)
    return _search(given, shared, how, parsed)


def _search(given: SearchConfig, shared: StudyConfig, how: ExecutionConfig, parsed: Any) -> int:
    # These import NumPy: wrong flags are answered before.
    from mlxhog.cli.mad import study_session
    from mlxhog.machine import machine
    from mlxhog.mad.search.space_file import read_space
    from mlxhog.mad.study.planning import Planning
    from mlxhog.mad.study.study import Study

    assert given.space is not None
    space = read_space(given.space)
    study = Study(
        space=space.to_dict(),
        suite=shared.suite or space.suite or "smoke",
        dim=shared.dim or space.dim,
        position=space.position,
        sampler=given.sampler,
        sampler_seed=given.seed,
        prune=given.prune,
        **study_flags.common(shared, parsed),
    )
    planning = Planning(study)
    how.require(study, machine.here())
    planning.sampler()  # whether it can be made here
    name = parsed.other.study or Path(given.space).stem
    return study_session.begin(study, planning, name, how, parsed.other)
