"""A table of MAD scores: xLSTM's layers beside attention and linear recurrences, with intervals.

    python benchmarks/mad_table.py                        suite smoke: 20 minutes on two cores
    python benchmarks/mad_table.py --suite lite --dry-run what the long run takes here, measured
    python benchmarks/mad_table.py --suite lite           the six baselines of the benchmark

It is a study (`mlxhog mad board studies/mad-table-smoke`): interrupt it at any time, and the same
command goes on. The table is written beside this script after every session; one that lacks runs
says so. Every candidate has four layers at the suite's width, but xLSTM[7:1], whose ratio needs
eight blocks: it stands apart, with what it costs.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from _harness import ROOT, commit, cores, versions

from mlxhog import plain_json
from mlxhog.durable import replace_file
from mlxhog.mad.candidate import train
from mlxhog.mad.progress import Best
from mlxhog.mad.report.board import observer
from mlxhog.mad.report.leaderboard import fraction, run_name, status, to_json
from mlxhog.mad.report.look import look
from mlxhog.mad.report.standing import Standing
from mlxhog.mad.result import Point
from mlxhog.mad.scores import Row, scores
from mlxhog.mad.sizes import params, state
from mlxhog.mad.study.candidates import Candidates, Listed
from mlxhog.mad.study.executors.local import local
from mlxhog.mad.study.record import Record
from mlxhog.mad.study.scheduler import Scheduler
from mlxhog.mad.study.store import Store, create, is_study
from mlxhog.mad.study.study import PlannedRun, Study, refuse_another
from mlxhog.mad.suites import expand, suite
from mlxhog.mad.tasks import resolve
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.quantities import format_clock

FOUR = {
    "mLSTM": "mlstm swiglu mlstm swiglu",
    "sLSTM": "slstm swiglu slstm swiglu",
    "mLSTM, sLSTM": "mlstm swiglu slstm swiglu",
    "sLSTM, mLSTM": "slstm swiglu mlstm swiglu",
    "attention": "mh-attention swiglu mh-attention swiglu",
    "GLA": "gla swiglu gla swiglu",
    "SSD (Mamba-2)": "ssd swiglu ssd swiglu",
    "gated convolution": "gated-conv swiglu gated-conv swiglu",
}
EIGHT_BLOCKS = {"xLSTM[7:1], 8 blocks": "(mlstm swiglu)*7 slstm swiglu"}
NAMES = {canonical(parse(layers)): name for name, layers in {**FOUR, **EIGHT_BLOCKS}.items()}
SEEDS = (0, 1, 2)
MEASURED_STEPS = 6
SILENCE_S = 600.0


class Plan:
    """Every run of a suite."""

    def __init__(self, name: str) -> None:
        self.suite = suite(name)
        self.study = Study(candidates=tuple(NAMES), suite=name, seeds=SEEDS)

    @property
    def runs(self) -> int:
        """How many there are."""
        return len(NAMES) * self.suite.runs * len(SEEDS)

    def __call__(self, candidate: str) -> list[PlannedRun]:
        """The runs of one candidate."""
        layers, found = parse(candidate), []
        for setting, config in expand(self.suite, layers, SEEDS):
            length = resolve(config.task, config.settings).length
            found.append(
                PlannedRun(
                    candidate=candidate,
                    config=config,
                    key=config.key(),
                    label=setting.label,
                    params=params(layers, config.dim),
                    state=state(layers, config.dim, length),
                )
            )
        return found

    def judge(self, candidate: str, records: Sequence[Record]) -> Best:
        """A candidate's score for the board."""
        (row,) = scores(records, self.suite, "test", SEEDS)
        return Best(
            candidate=candidate, score=row.score, interval=row.interval, missing=len(row.missing)
        )


def main() -> int:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--suite", default="smoke", choices=("smoke", "lite", "full"))
    parser.add_argument("--parallel", type=int, default=len(cores()), help="runs at once")
    parser.add_argument("--studies", default="studies", help="folder of the study")
    parser.add_argument("--out", default=str(ROOT / "benchmarks"), help="folder of the table")
    parser.add_argument("--dry-run", action="store_true", help="measure how long it will take")
    parser.add_argument("--table-only", action="store_true", help="write what there is so far")
    parser.add_argument("--quiet", action="store_true", help="plain lines instead of a board")
    chosen = parser.parse_args()
    plan = Plan(chosen.suite)
    root, name = Path(chosen.studies), f"mad-table-{chosen.suite}"
    if chosen.dry_run:
        _print_eta(plan, root / name, chosen.parallel)
        return 0
    if is_study(root / name):
        store = Store((root / name).absolute())
        refuse_another(store, plan.study)
    else:
        store = create(root, name, plan.study.to_dict())
    if not chosen.table_only:
        _execute(store, plan, chosen.parallel, quiet=chosen.quiet)
    standing = look(store)
    suffix = "" if chosen.suite == "smoke" else f"_{chosen.suite}"
    table = Path(chosen.out) / f"mad_table{suffix}"
    replace_file(table.with_suffix(".md"), markdown(standing, plan, chosen.parallel).encode())
    replace_file(
        table.with_suffix(".json"), plain_json.dumps(_json(standing, chosen.parallel), indent=1)
    )
    print(table.with_suffix(".md"), table.with_suffix(".json"), sep="\n")
    if standing.lacking:
        print(f"{standing.lacking}; the same command goes on", file=sys.stderr)
    return 0


def _execute(store: Store, plan: Plan, parallel: int, *, quiet: bool) -> None:
    logs = store.directory / "logs"
    listed = Candidates(Listed([parse(name) for name in NAMES]), store)
    with (
        store.lock(),
        local(train, parallel=parallel, threads=1, logs=logs, silence_s=SILENCE_S) as executor,
        observer(sys.stderr, quiet=quiet) as board,
    ):
        Scheduler(store, listed, plan, plan.judge, executor, observer=board, total=plan.runs).run()


# -- how long it takes ----------------------------------------------------------------------------


class _Stopwatch:
    """A `Watch` that measures a few steps and one evaluation."""

    def __init__(self) -> None:
        self.beats: list[float] = []
        self.evaluated_s = 0.0

    def beat(self) -> None:
        self.beats.append(time.perf_counter())

    def point(self, point: Point) -> None:
        self.evaluated_s = time.perf_counter() - self.beats[-1]

    def go_on(self, point: Point) -> bool:
        return True


def _print_eta(plan: Plan, directory: Path, parallel: int) -> None:
    """Measure a few steps of every kind of run that is missing, and say what all of them take."""
    ended = {}
    if is_study(directory):
        ended = {record.key: record.seconds for record in Store(directory).records()}
    total_s, missing = 0.0, 0
    for candidate in NAMES:
        waiting = [run for run in plan(candidate) if run.key not in ended]
        kinds: dict[tuple[str, str], float] = {}
        for run in waiting:
            kind = (run.config.task, run.label)
            if kind not in kinds:
                kinds[kind] = measured_s(run)
            total_s += kinds[kind]
        missing += len(waiting)
        print(
            f"{NAMES[candidate]:22} {len(waiting):4} runs to go, {sum(kinds.values()):7.0f} s for "
            "one of each kind",
            flush=True,
        )
    print(
        f"suite {plan.suite.name}: {missing} of {plan.runs} runs to go; at most "
        f"{format_clock(total_s / parallel)} with {parallel} at once (no run stopping early)"
    )


def measured_s(run: PlannedRun) -> float:
    """Seconds that a run takes to its last step, from its first few."""
    protocol, watch = run.config.protocol, _Stopwatch()
    few = replace(protocol, steps=MEASURED_STEPS, epochs=None, eval_every=MEASURED_STEPS)
    train(replace(run.config, protocol=few), watch=watch)
    steps = watch.beats[:MEASURED_STEPS]
    step_s = (steps[-1] - steps[1]) / (len(steps) - 2)
    per_epoch = resolve(run.config.task, run.config.settings).train_rows / protocol.batch_size
    n = protocol.steps or protocol.epochs * per_epoch
    return n * step_s + n / (protocol.eval_every or per_epoch) * watch.evaluated_s


# -- the table ------------------------------------------------------------------------------------


def markdown(standing: Standing, plan: Plan, parallel: int) -> str:
    """The table with what it was made with and what it lacks."""
    four = [row for row in standing.rows if len(row.layers) == 4]
    deep = [row for row in standing.rows if len(row.layers) > 4]
    tasks = standing.tasks
    lines = [
        f"# MAD scores, suite `{standing.suite}`",
        "",
        f"    {_command(standing)}",
        "",
        f"{'**PARTIAL: ' + standing.lacking + '.** ' if standing.lacking else ''}"
        f"{len(standing.records)} runs, {format_clock(standing.seconds)} of training with "
        f"{parallel} at once on {_machine()}; commit {commit()}.",
        "",
        "Score: mean over the six tasks of `acc_macro`, mean over seeds ± 95 % (Student's t). "
        "Tasks: the same for each. Parameters are those of the layers, state is what they keep per "
        "sequence at the longest row, time is the mean of one run.",
        "",
        *_rows([*four], tasks),
        "",
        "Eight blocks, so four times the layers; compare its cost, not its rank:",
        "",
        *_rows(deep, tasks),
        "",
    ]
    if standing.suite != "full":
        lines += [
            "Not the benchmark's own difficulty grid: see `mlxhog/mad/suites.py` for the settings. "
            "These scores say what each stack learns within the steps below, and do not compare "
            "with published ones.",
            "",
        ]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in standing.facts if name != "hosts"]
    lines += [f"| {name} | {value} |" for name, value in _settings(plan)]
    lines += _troubles(standing)
    return "\n".join(lines) + "\n"


def _rows(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    header = ["mixers", "layers", "score", *tasks, "params", "state", "s / run", "status"]
    ruler = ["---", "---", *["---:"] * (len(header) - 3), "---"]
    found = [header, ruler]
    for row in rows:
        interval = "" if row.interval is None else f" ± {row.interval:.3f}"
        found.append(
            [
                NAMES[row.candidate],
                f"`{_layers(row.candidate)}`",
                f"**{row.score:.3f}**{interval}",
                *(fraction(row.tasks.get(task)) for task in tasks),
                f"{row.params:,}",
                f"{row.state:,}",
                f"{row.seconds / row.n_runs:.1f}",
                status(row),
            ]
        )
    return [f"| {' | '.join(cells)} |" for cells in found]


def _layers(candidate: str) -> str:
    return {canonical(parse(v)): v for v in (*FOUR.values(), *EIGHT_BLOCKS.values())}[candidate]


def _settings(plan: Plan) -> list[tuple[str, str]]:
    """What each task of the suite is."""
    found = []
    for setting in plan.suite.settings:
        words = [f"{name} {value}" for name, value in setting.settings.items()]
        words += [f"{name} {value}" for name, value in setting.protocol.items()]
        found.append((f"{setting.task}, {setting.label}", ", ".join(words)))
    return found if plan.suite.name != "full" else []


def _troubles(standing: Standing) -> list[str]:
    lost = [record for record in standing.records if record.status in ("failed", "diverged")]
    if not lost:
        return ["", "No run diverged or failed."]
    return [
        "",
        "Runs that count as 0:",
        "",
        *(
            f"- {NAMES[record.candidate]}, {run_name(record)}: {record.status} {record.reason}"
            for record in lost
        ),
    ]


def _json(standing: Standing, parallel: int) -> dict[str, Any]:
    found = to_json(standing)
    for row in found["candidates"]:
        row["name"] = NAMES[row["layers"]]
    found["troubles"] = [
        {key: value for key, value in trouble.items() if key != "host"}
        for trouble in found["troubles"]
    ]
    found["facts"].pop("hosts", None)
    return {
        "command": _command(standing),
        **found,
        "parallel": parallel,
        "machine": _machine(),
        "versions": versions("mlxhog", "torch", "mlx", "numpy"),
        "commit": commit(),
    }


def _command(standing: Standing) -> str:
    extra = "" if standing.suite == "smoke" else f" --suite {standing.suite}"
    return f"python benchmarks/mad_table.py{extra}"


def _machine() -> str:
    found = versions("torch")
    return (
        f"{len(cores())} cores, {platform.machine()}, {platform.system()}, "
        f"Python {found['python']}, torch {found['torch']}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
