"""Record a surface: train every candidate of a small space, for the replays of `samplers.py`.

    python benchmarks/mad_surface.py record --dry-run   the hours that it takes here, measured
    python benchmarks/mad_surface.py record             324 candidates, 4 tasks: an hour
    python benchmarks/mad_surface.py record --quick     25 candidates, 2 tasks: minutes
    python benchmarks/mad_surface.py show               what a surface has

It is a study (`mlxhog mad board studies/mad-surface`): interrupt it at any time, and the same
command continues. At its end it is written to benchmarks/mad/surface.json.xz. Candidates are
trained by the protocol of the suite, at width 32 and with fewer steps.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from harness.claims import Findings, flags, measured
from harness.machine import ROOT, cores, smallest
from mad.surface import Surface, load, write

from mlxhog.cli.mad.session import observer, seeds
from mlxhog.errors import MlxhogError
from mlxhog.files.quantities import format_bytes, format_clock
from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.search.space import to_space
from mlxhog.mad.study.session import Planning, execute
from mlxhog.mad.study.study import Study, open_store
from mlxhog.mad.training.candidate import estimate
from mlxhog.mad.training.run_plan import make_run_plan
from mlxhog.models.mad.sequence import canonical

FILE = ROOT / "benchmarks" / "mad" / "surface.json.xz"
MIXERS = (
    "mlstm", "slstm", "mh-attention", "gla", "ssd", "gated-delta-net", "gated-conv", "mamba",
    "linear-attention",
)  # fmt: skip
CHANNELS = ("swiglu", "mlp")
TUNED = ("in-context-recall", "selective-copying")
HELD_OUT = ("noisy-in-context-recall", "compression")
"""Changes of samplers are chosen on the first half of the tasks, and reported on the second."""
STEPS = 240
EVALUATIONS = 20
"""So that every rung of a replayed halving is an evaluation."""
WIDTH = 32


def study_of(*, quick: bool, steps: int | None = None) -> Study:
    """The study that a surface records."""
    mixers, channels = (MIXERS[: smallest(2, 5)], CHANNELS[:1]) if quick else (MIXERS, CHANNELS)
    space = to_space({"depth": 4, "mixers": list(mixers), "channels": list(channels)})
    steps = steps or smallest(EVALUATIONS, 40 if quick else STEPS)
    return Study(
        space=space.to_dict(),
        suite="smoke",
        tasks=TUNED if quick else (*TUNED, *HELD_OUT),
        protocol={"steps": steps, "eval_every": max(1, steps // EVALUATIONS)},
        seeds=seeds("1"),
        dim=WIDTH,
        sampler="random",  # so that the runs so far say how long the rest takes
    )


def main() -> int:
    """Record, or show."""
    parser = flags(__doc__, quick="25 candidates, 2 tasks, 40 steps")
    parser.add_argument("command", nargs="?", choices=("record", "show"), default="record")
    parser.add_argument("--steps", type=int, help="of a run")
    parser.add_argument("--parallel", type=int, default=len(cores()), help="runs at once")
    parser.add_argument("--studies", default="studies", help="folder of the study")
    parser.add_argument("--out", type=Path, default=FILE, help="the surface")
    parser.add_argument("--dry-run", action="store_true", help="measure how long it will take")
    parser.add_argument("--quiet", action="store_true", help="no board")
    chosen = checked(parser)
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.tiny:
            chosen.studies, chosen.out = scratch, Path(scratch) / FILE.name
        try:
            return measured("mad_surface", chosen, measure, packages=("torch",))
        except MlxhogError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2


def measure(findings: Findings, chosen: Namespace) -> None:
    """Record, or show."""
    if chosen.command == "record":
        record(chosen)
    if not chosen.dry_run:
        show(load(chosen.out))


def checked(parser: ArgumentParser) -> Namespace:
    """Read the flags; a quick record needs a place of its own."""
    chosen = parser.parse_args()
    if chosen.steps is not None and chosen.steps < EVALUATIONS:
        parser.error(f"--steps is {chosen.steps}; give {EVALUATIONS} at least")
    if chosen.quick and not chosen.tiny and chosen.command == "record" and chosen.out == FILE:
        parser.error(f"--quick would replace {FILE.name}; give another --out")
    return chosen


def record(chosen: Namespace) -> None:
    """Execute what is missing, and write the surface."""
    study = study_of(quick=chosen.quick, steps=chosen.steps)
    planning, how = Planning(study), ExecutionConfig(parallel=chosen.parallel, out=chosen.studies)
    if chosen.dry_run:
        print(_duration(planning, chosen.parallel))
        return
    name = "mad-surface-quick" if chosen.quick else "mad-surface"
    store = open_store(study, how.out, name)
    board = observer(sys.stderr, quiet=chosen.quiet)
    ended = execute(store, planning, how, chosen.parallel, board)
    if ended.status == "interrupted":
        print("interrupted; the same command continues", file=sys.stderr)
        raise SystemExit(130)
    size = write(store, chosen.out)
    print(f"{chosen.out}: {format_bytes(size)}, digest of its content inside")


def _duration(planning: Planning, parallel: int) -> str:
    """The time of all runs: that of a few steps of every mixer in both of its slots.

    A step's time is a sum over slots, so stacks of one mixer have the mean of all candidates.
    """
    space = to_space(planning.study.space)
    seconds = []
    for mixer in space.mixers:
        stack = canonical((mixer, space.channels[0]) * (space.depths[0] // 2))
        runs = [run for run in planning.runs(stack) if run.seed == planning.study.seeds[0]]
        own = [estimate(make_run_plan(run)) for run in runs]
        seconds.append(fmean(one.total_s for one in own if one is not None))
        print(f"{stack:60} {seconds[-1]:6.1f} s a run", flush=True)
    assert planning.total is not None, "a surface is of a space that can be listed"
    total = planning.total * fmean(seconds) / parallel
    return f"{planning.total} runs, at most {format_clock(total)} with {parallel} at once"


def show(surface: Surface) -> None:
    """Print what a surface holds."""
    seen = surface.scores()
    ended = [run.record for runs in surface.runs.values() for run in runs]
    rows: dict[str, Any] = {
        "candidates": len(surface.runs),
        "runs": len(ended),
        "tasks": ", ".join(surface.tasks),
        "seeds": ", ".join(map(str, surface.seeds)),
        "trained": format_clock(sum(record.seconds for record in ended)),
        "lost runs": sum(record.status in ("failed", "diverged") for record in ended),
        "recorded by": "mlxhog {mlxhog}, commit {commit}".format(**surface.facts),
    }
    for name, value in rows.items():
        print(f"{name:12} {value}")
    for seed, scores in zip(surface.seeds, seen, strict=True):
        best = list(surface.runs)[scores.argmax()]
        print(
            f"seed {seed}: worst {scores.min():.3f}, median {np.median(scores):.3f}, "
            f"best {scores.max():.3f} {best}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
