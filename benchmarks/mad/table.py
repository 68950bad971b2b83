"""A study whose candidates have names, as a table beside a script."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.claims import flags, write_rows
from harness.machine import commit, cores, smallest, versions

from mlxhog.base import machine
from mlxhog.base.durable import replace_file
from mlxhog.base.quantities import format_clock
from mlxhog.cli.mad.session import observer
from mlxhog.mad.report.board import accuracy
from mlxhog.mad.report.leaderboard import lost, remarks, status, to_json
from mlxhog.mad.report.ranking import read_ranking
from mlxhog.mad.study.session import Planning, execute
from mlxhog.mad.study.store import Store, is_study
from mlxhog.mad.study.study import Study, open_store
from mlxhog.mad.training.candidate import estimate
from mlxhog.mad.training.run_plan import make_run_plan
from mlxhog.models.mad.sequence import canonical, parse


@dataclass(frozen=True, kw_only=True)
class Table:
    """A study and the names of its candidates.

    Attributes:
        name: of the study.
        layers: name of a candidate -> its layers, as they are shown.
        suite: of the study.
        seeds: of the study.
        command: that makes the table.
        tasks: of the suite that count; empty for all.
        rates: step sizes; empty for the suite's.
    """

    name: str
    layers: Mapping[str, str]
    suite: str
    seeds: tuple[int, ...]
    command: str
    tasks: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()

    @property
    def names(self):
        """Canonical string of a candidate -> its name."""
        return {canonical(parse(layers)): name for name, layers in self.layers.items()}

    @property
    def study(self):
        """The study."""
        return Study(
            candidates=tuple(self.names),
            suite=self.suite,
            tasks=self.tasks,
            seeds=self.seeds,
            rates=self.rates,
            protocol=smallest({"steps": 2, "eval_every": 2}, {}),
        )

    # -- how long it takes ------------------------------------------------------------------------

    def print_eta(self, how):
        """Measure a few steps of every kind of run that is missing; print the time of all runs."""
        planning, directory = Planning(self.study), Path(how.out) / self.name
        records = Store(directory).records() if is_study(directory) else ()
        ended = {record.key for record in records}
        total_s, missing = 0.0, 0
        for candidate, name in self.names.items():
            waiting = [run for run in planning.runs(candidate) if run.key() not in ended]
            kinds = {}
            for run in waiting:
                kind = (run.task, run.label)
                if kind not in kinds:
                    measured = estimate(make_run_plan(run))
                    assert measured is not None, "one worker in each run"
                    kinds[kind] = measured.total_s
                total_s += kinds[kind]
            missing += len(waiting)
            spent = format_clock(sum(kinds.values()))
            print(f"{name:22} {len(waiting):4} runs to go, one of each kind {spent}", flush=True)
        parallel = how.resolve_parallel(planning.study, machine.here())
        print(
            f"suite {self.suite}: {missing} of {planning.total} runs to go, at most "
            f"{format_clock(total_s / parallel)} with {parallel} at once (if none stops early)"
        )

    # -- the study --------------------------------------------------------------------------------

    def run(self, how, *, quiet, table_only):
        """Execute what is missing; return the ranking, and "done" or "interrupted"."""
        planning, ended = Planning(self.study), "done"
        store = open_store(self.study, how.out, self.name)
        if not table_only:
            parallel = how.resolve_parallel(planning.study, machine.here())
            board = observer(sys.stderr, quiet=quiet)
            ended = execute(store, planning, how, parallel, board).status
        ranking = read_ranking(store)
        if ranking.lacking:
            print(f"{ranking.lacking}; the same command continues", file=sys.stderr)
        return ranking, ended

    # -- the table --------------------------------------------------------------------------------

    def made(self, ranking, parallel):
        """How the table was made, and what it lacks."""
        lacking = f"**PARTIAL: {ranking.lacking}.** " if ranking.lacking else ""
        return (
            f"{lacking}{len(ranking.records)} runs, {format_clock(ranking.seconds)} of training "
            f"with {parallel} at once on {_machine()}; commit {commit()}."
        )

    def rows(self, rows, tasks, published=None):
        """A Markdown table, with a column of published scores if there are some."""
        extra = [] if published is None else ["published"]
        header = ["mixers", "layers", *extra, "score", *tasks, *COSTS]
        ruler = ["---", "---", *["---:"] * (len(header) - 3), "---"]
        lines = [header, ruler]
        for row in rows:
            interval = "" if row.interval is None else f" ± {row.interval:.3f}"
            name = self.names[row.candidate]
            lines.append(
                [
                    name,
                    f"`{self.layers[name]}`",
                    *(accuracy((published or {}).get(name)) for _ in extra),
                    f"**{row.score:.3f}**{interval}",
                    *(accuracy(row.tasks.get(task)) for task in tasks),
                    f"{row.params:,}",
                    f"{row.state_bytes:,}",
                    f"{row.seconds / row.n_runs:.1f}",
                    status(row),
                ]
            )
        return [f"| {' | '.join(cells)} |" for cells in lines]

    def facts(self, ranking):
        """The protocol, the settings of a small suite, and the runs that count as 0."""
        lines = [f"- {note}" for note in remarks(ranking.rows)]
        lines += ["", "| | |", "| --- | --- |"]
        lines += [
            f"| {name} | {value} |" for name, value in ranking.facts.items() if name != "hosts"
        ]
        settings = () if self.suite == "full" else Planning(self.study).suite.settings
        for one in settings:
            values = {**one.settings, **one.protocol}.items()
            words = ", ".join(f"{name} {value}" for name, value in values)
            lines.append(f"| {one.task}, {one.label} | {words} |")
        runs = lost(ranking)
        return [
            *lines,
            "",
            "Runs that count as 0:" if runs else "No run diverged or failed.",
            "",
            *(
                f"- {self.names[run.candidate]}, {run.title}: {run.status} {run.reason}"
                for run in runs
            ),
        ]

    def document(self, ranking, parallel):
        """The table as plain values, without the names of machines."""
        document = to_json(ranking)
        for row in document["candidates"]:
            row["name"] = self.names[row["layers"]]
        for trouble in document["troubles"]:
            del trouble["host"]
        document["facts"].pop("hosts", None)
        return {
            "command": self.command,
            **document,
            "parallel": parallel,
            "machine": _machine(),
            "versions": versions("mlxhog", "torch", "mlx", "numpy"),
            "commit": commit(),
        }


COSTS = ("params", "state bytes", "s / run", "status")
MEANINGS = (
    "Score: mean over the tasks of `acc_macro`, mean over seeds ± 95 % (Student's t). Tasks: the "
    "same for each. Parameters are those of the layers, state is what they keep per sequence at "
    "the longest row, in float32; time is the mean of one run."
)


def table_flags(about, **how):
    """The flags of a script that makes a table."""
    parser = flags(about, **how)
    parser.add_argument("--parallel", type=int, help="runs at once; by default one per core")
    parser.add_argument("--studies", default="studies", help="folder of the study")
    parser.add_argument("--out", help="folder of the table; by default that of the script")
    parser.add_argument("--dry-run", action="store_true", help="measure how long it will take")
    parser.add_argument("--table-only", action="store_true", help="write what there is so far")
    parser.add_argument("--quiet", action="store_true", help="no board")
    return parser


@contextmanager
def places(chosen):
    """Let the study and the table of `--tiny` stand in a folder that is removed."""
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.tiny:
            chosen.studies = chosen.out = scratch
        yield


def write(path, text, document):
    """Write both forms of a table, and print their paths."""
    replace_file(path.with_suffix(".md"), text.encode())
    write_rows(path.with_suffix(".json"), document)
    print(path.with_suffix(".md"), path.with_suffix(".json"), sep="\n")


def _machine():
    packages = versions("torch")
    return (
        f"{len(cores())} cores, {platform.machine()}, {platform.system()}, "
        f"Python {packages['python']}, torch {packages['torch']}"
    )
