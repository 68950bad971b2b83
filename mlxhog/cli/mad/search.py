"""`mlxhog mad search`, `mlxhog mad bench` and `mlxhog mad resume`: commands that run a study."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import Written, study_argument
from mlxhog.cli.frame import Report, command
from mlxhog.cli.mad import session
from mlxhog.cli.mad.session import PROTOCOL_PART, BeginConfig, OutputConfig, StudyConfig
from mlxhog.config.options import option, switch
from mlxhog.errors import ConfigError
from mlxhog.mad.options import ExecutionConfig

if TYPE_CHECKING:
    from mlxhog.models.mad.config import MADConfig

SEARCH_ABOUT = """\
Search a space of architectures: train candidates on every setting of a suite, several at once, and
keep every result in studies/NAME. After a kill at any time, the same line or mad resume continues.
After one Ctrl-C the runs in progress end, a second one drops them.

The space is a YAML file, or space-small (the default) or space-xlstm of the package. A short one:

  space: {depth: 4, mixers: [mlstm, mh-attention], channels: [swiglu]}"""
SEARCH_EXAMPLES = (
    "mad search --space space-small --suite smoke --parallel 2 --study first",
    "mad search --space space.yaml --suite lite --sampler evolution --budget 2h --seeds 3",
    "mad search --space space.yaml --no-prune --executor ray --study first",
    "mad search --plugin examples/my_task.py --tasks in-context-recall,my_task --steps 20",
    "mad search --space space.yaml --suite full --dry-run",
)

SEARCH_MAIN = (
    "space", "suite", "tasks", "sampler", "seeds", "rates", "dim", "steps", "backend",
    "workers", "parallel", "budget", "study", "no_prune", "dry_run", "json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Options of `mlxhog mad search` in addition to those of every study."""

    no_prune: bool = switch("no run ends early", excludes=("prune",))
    space: str = option("space-small", "the search space: a YAML file or a name")
    sampler: str = option(
        "grid",
        "sampler of candidates",
        choices=("grid", "random", "evolution", "tpe"),
    )
    prune: bool = option(True, "end runs early if their candidate has a low rank at a rung")
    seed: int = option(0, "seed of the sampler", low=0, high=2**32 - 1)


@command(
    "mad search", SEARCH_ABOUT, SEARCH_EXAMPLES,
    BeginConfig, SearchConfig, StudyConfig, PROTOCOL_PART, ExecutionConfig,
    main=SEARCH_MAIN,
)  # fmt: skip
def search(
    asked: BeginConfig,
    config: SearchConfig,
    shared: StudyConfig,
    typed: Written,
    how: ExecutionConfig,
) -> Report:
    """Search a space."""
    fields_set = session.protocol(typed)
    # These import NumPy: wrong flags are reported before.
    from mlxhog.mad.search.space import read_space
    from mlxhog.mad.study.session import Planning, check_execution
    from mlxhog.mad.study.study import Study

    space = read_space(config.space)
    study = Study(
        space=space.to_dict(),
        suite=shared.suite or space.suite or "smoke",
        dim=shared.dim or space.dim,
        position=space.position,
        sampler=config.sampler,
        sampler_seed=config.seed,
        prune=config.prune and not config.no_prune,
        **session.common(shared, fields_set),
    ).remembering()
    planning = Planning(study)
    check_execution(how, study)
    return session.begin(study, planning, Path(config.space).stem, how, asked)


BENCH_ABOUT = """\
Score architectures over a suite of tasks: a study with a list of candidates, in which no run ends
early. After a kill, the same line or mad resume continues."""
BENCH_EXAMPLES = (
    'mad bench --layers "mlstm swiglu mlstm swiglu" --suite smoke',
    'mad bench --layers "(mlstm swiglu)*2" --layers "(gla swiglu)*2" --suite lite --seeds 3',
    "mad bench --config arch.yaml --suite full --parallel 2 --study mine",
    'mad bench --layers "(slstm swiglu)*2" --rates 5e-4,1e-3,2e-3',
)

BENCH_MAIN = (
    "layers", "config", "suite", "tasks", "seeds", "seed", "rates", "dim", "steps", "backend",
    "workers", "parallel", "budget", "study", "dry_run", "json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BenchConfig(BeginConfig):
    """Options of `mlxhog mad bench` in addition to those of every study."""

    layers: tuple[str, ...] = option((), "an architecture's layers", many=True, metavar="TEXT")
    config: tuple[str, ...] = option(
        (),
        "an architecture; both flags may be given several times",
        many=True,
        metavar="NAME_OR_FILE",
        short="c",
    )
    position: str | None = option(None, "positional embedding: learned or sincos", metavar="KIND")
    seed: str | None = option(
        None, "the one seed of every run, instead of --seeds", metavar="N", excludes=("seeds",)
    )


@command(
    "mad bench", BENCH_ABOUT, BENCH_EXAMPLES,
    BenchConfig, StudyConfig, PROTOCOL_PART, ExecutionConfig,
    main=BENCH_MAIN,
)  # fmt: skip
def bench(config: BenchConfig, shared: StudyConfig, typed: Written, how: ExecutionConfig) -> Report:
    """Score architectures."""
    fields_set = session.protocol(typed)
    if not config.layers and not config.config:
        raise ConfigError(f"give an architecture, as in mlxhog {BENCH_EXAMPLES[0]}")
    if config.seed is not None:
        shared = replace(shared, seeds=f"{config.seed},")
    # These import NumPy: wrong flags are reported before.
    from mlxhog.mad.study.session import Planning, check_execution
    from mlxhog.mad.study.study import Study
    from mlxhog.mad.tasks import resolve
    from mlxhog.mad.training.run_plan import check_reach
    from mlxhog.models.mad.sequence import canonical, parse
    from mlxhog.models.registry import load_candidate

    architectures = [load_candidate(name) for name in config.config]
    dim, position = _shared_sizes(architectures, shared.dim, config.position)
    texts = [canonical(parse(text)) for text in config.layers]
    texts += [canonical(architecture.layers) for architecture in architectures]
    study = Study(
        candidates=tuple(dict.fromkeys(texts)),
        suite=shared.suite or "smoke",
        dim=dim,
        position=position,
        **session.common(shared, fields_set),
    ).remembering()
    planning = Planning(study)
    rows = [resolve(one.task, one.settings) for one in planning.suite.settings]
    for origin, architecture in zip(config.config, architectures, strict=True):
        check_reach(origin, architecture, rows)
    check_execution(how, study)
    return session.begin(study, planning, _name(study.to_dict()), how, config)


def _shared_sizes(
    architectures: list[MADConfig], dim: int | None, position: str | None
) -> tuple[int | None, str]:
    """Return the common width and positions of the architectures, or those of the flags.

    Raises:
        ConfigError: they differ, or the position is unknown.
    """
    from mlxhog.models.mad.config import POSITIONS

    if position is not None and position not in POSITIONS:
        raise ConfigError(f"--position is {position!r}; give one of {', '.join(POSITIONS)}")
    widths = {architecture.hidden_size for architecture in architectures} if dim is None else {dim}
    positions = {position or architecture.position for architecture in architectures}
    if len(widths) > 1 or len(positions) > 1:
        raise ConfigError(
            f"the architectures have widths {sorted(widths)} and positions {sorted(positions)}; "
            "bench them one by one, or give --dim and --position"
        )
    return next(iter(widths), None), next(iter(positions), position or "none")


def _name(definition: dict[str, Any]) -> str:
    """Return a name that is the same for the same line."""
    text = json.dumps(definition, sort_keys=True)
    return f"bench-{definition['suite']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


RESUME_ABOUT = """\
Continue a study after any stop: results are kept, the other runs are started. The execution may
change from session to session, the definition does not."""
RESUME_EXAMPLES = (
    "mad resume first",
    "mad resume first --parallel 4 --budget 2h",
    "mad resume first --executor ray --ray-address auto",
    "mad resume first --retry-failed",
)


@dataclass(frozen=True, kw_only=True)
class ResumeConfig(OutputConfig):
    """Options of `mlxhog mad resume`."""

    study: str = study_argument()
    retry_failed: bool = switch("also repeat failed runs")


@command("mad resume", RESUME_ABOUT, RESUME_EXAMPLES, ResumeConfig, ExecutionConfig)
def resume(config: ResumeConfig, how: ExecutionConfig) -> Report:
    """Continue a study."""
    # These import NumPy: wrong flags are reported before.
    from mlxhog.mad.study import study as studies
    from mlxhog.mad.study.session import Planning, check_execution
    from mlxhog.mad.study.store import find

    store = find(config.study, Path(how.out))
    study = studies.read(store)
    studies.refuse_other_files(store, study.remembering())
    planning = Planning(study)
    check_execution(how, planning.study)
    if config.dry_run:
        return session.dry_run(planning, store.name, how, store)
    return session.go(store, planning, how, config, retry_failed=config.retry_failed)
