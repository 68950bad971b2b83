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

import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.claims import flags
from harness.machine import ROOT, commit, cores, versions

from mlxhog.cli.mad.session import observer, seeds
from mlxhog.files import plain_json
from mlxhog.files.durable import replace_file
from mlxhog.files.quantities import format_clock
from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.report.board import accuracy
from mlxhog.mad.report.leaderboard import run_name, status, to_json
from mlxhog.mad.report.ranking import Ranking, read_ranking
from mlxhog.mad.scores import CandidateScore
from mlxhog.mad.study.session import Planning, execute
from mlxhog.mad.study.store import Store, is_study
from mlxhog.mad.study.study import Study, open_store
from mlxhog.mad.suites import Suite
from mlxhog.mad.training.candidate import estimate
from mlxhog.mad.training.run_plan import make_run_plan
from mlxhog.models.mad.sequence import canonical, parse

FOUR = {
    "mLSTM": "mlstm swiglu mlstm swiglu",
    "sLSTM": "slstm swiglu slstm swiglu",
    "sLSTM, convolution": "slstm(conv=4) swiglu slstm(conv=4) swiglu",
    "mLSTM, sLSTM": "mlstm swiglu slstm swiglu",
    "sLSTM, mLSTM": "slstm swiglu mlstm swiglu",
    "attention": "mh-attention(h16) swiglu mh-attention(h16) swiglu",
    "GLA": "gla swiglu gla swiglu",
    "SSD (Mamba-2)": "ssd swiglu ssd swiglu",
    "gated convolution": "gated-conv swiglu gated-conv swiglu",
}
EIGHT_BLOCKS = {"xLSTM[7:1], 8 blocks": "(mlstm swiglu)*7 slstm swiglu"}
NAMES = {canonical(parse(layers)): name for name, layers in {**FOUR, **EIGHT_BLOCKS}.items()}
SEEDS = seeds("3")


def study_of(name: str) -> Study:
    """The study of a suite."""
    return Study(candidates=tuple(NAMES), suite=name, seeds=SEEDS)


def main() -> int:
    """Run what is missing, and write the table."""
    parser = flags(__doc__)
    parser.add_argument("--suite", default="smoke", choices=("smoke", "lite", "full"))
    parser.add_argument("--parallel", type=int, default=len(cores()), help="runs at once")
    parser.add_argument("--studies", default="studies", help="folder of the study")
    parser.add_argument("--out", default=str(ROOT / "benchmarks"), help="folder of the table")
    parser.add_argument("--dry-run", action="store_true", help="measure how long it will take")
    parser.add_argument("--table-only", action="store_true", help="write what there is so far")
    parser.add_argument("--quiet", action="store_true", help="plain lines instead of a board")
    chosen = parser.parse_args()
    study, name = study_of(chosen.suite), f"mad-table-{chosen.suite}"
    planning, how = Planning(study), ExecutionConfig(parallel=chosen.parallel, out=chosen.studies)
    if chosen.dry_run:
        directory = Path(how.out) / name
        _print_eta(planning, Store(directory) if is_study(directory) else None, chosen.parallel)
        return 0
    store = open_store(study, how.out, name)
    ended = "done"
    if not chosen.table_only:
        board = observer(sys.stderr, quiet=chosen.quiet)
        ended = execute(store, planning, how, chosen.parallel, board).status
    ranking = read_ranking(store)
    suffix = "" if chosen.suite == "smoke" else f"_{chosen.suite}"
    table = Path(chosen.out) / f"mad_table{suffix}"
    replace_file(
        table.with_suffix(".md"), markdown(ranking, planning.suite, chosen.parallel).encode()
    )
    replace_file(
        table.with_suffix(".json"), plain_json.dumps(_json(ranking, chosen.parallel), indent=1)
    )
    print(table.with_suffix(".md"), table.with_suffix(".json"), sep="\n")
    if ranking.lacking:
        print(f"{ranking.lacking}; the same command goes on", file=sys.stderr)
    return 130 if ended == "interrupted" else 0


# -- how long it takes ----------------------------------------------------------------------------


def _print_eta(planning: Planning, store: Store | None, parallel: int) -> None:
    """Measure a few steps of every kind of run that is missing, and say what all of them take."""
    ended = set() if store is None else {record.key for record in store.records()}
    total_s, missing = 0.0, 0
    for candidate in NAMES:
        waiting = [run for run in planning.runs(candidate) if run.key not in ended]
        kinds: dict[tuple[str, str], float] = {}
        for run in waiting:
            kind = (run.config.task, run.label)
            if kind not in kinds:
                measured = estimate(make_run_plan(run.config))
                assert measured is not None, "one worker in each run"
                kinds[kind] = measured.total_s
            total_s += kinds[kind]
        missing += len(waiting)
        spent = format_clock(sum(kinds.values()))
        print(
            f"{NAMES[candidate]:22} {len(waiting):4} runs to go, one of each kind {spent}",
            flush=True,
        )
    print(
        f"suite {planning.suite.name}: {missing} of {planning.total} runs to go, at most "
        f"{format_clock(total_s / parallel)} with {parallel} at once (if none stops early)"
    )


# -- the table ------------------------------------------------------------------------------------


def markdown(ranking: Ranking, suite: Suite, parallel: int) -> str:
    """The table with what it was made with and what it lacks."""
    four = [row for row in ranking.rows if len(row.layers) == 4]
    deep = [row for row in ranking.rows if len(row.layers) > 4]
    tasks = ranking.tasks
    lines = [
        f"# MAD scores, suite `{ranking.suite}`",
        "",
        f"    {_command(ranking)}",
        "",
        f"{'**PARTIAL: ' + ranking.lacking + '.** ' if ranking.lacking else ''}"
        f"{len(ranking.records)} runs, {format_clock(ranking.seconds)} of training with "
        f"{parallel} at once on {_machine()}; commit {commit()}.",
        "",
        "Score: mean over the six tasks of `acc_macro`, mean over seeds ± 95 % (Student's t). "
        "Tasks: the same for each. Parameters are those of the layers, state is what they keep per "
        "sequence at the longest row, time is the mean of one run.",
        "",
        *_rows(four, tasks),
        "",
    ]
    if deep:
        about = "Eight blocks, so four times the layers; compare its cost, not its rank:"
        lines += [about, "", *_rows(deep, tasks), ""]
    if ranking.suite != "full":
        lines += [
            "Not the benchmark's own difficulty grid: see `mlxhog/mad/suites.py` for the settings. "
            "These scores say what each stack learns within the steps below, and do not compare "
            "with published ones.",
            "",
        ]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in ranking.facts if name != "hosts"]
    lines += [f"| {name} | {value} |" for name, value in _settings(suite)]
    lines += _troubles(ranking)
    return "\n".join(lines) + "\n"


def _rows(rows: Sequence[CandidateScore], tasks: Sequence[str]) -> list[str]:
    header = ["mixers", "layers", "score", *tasks, "params", "state", "s / run", "status"]
    ruler = ["---", "---", *["---:"] * (len(header) - 3), "---"]
    lines = [header, ruler]
    for row in rows:
        interval = "" if row.interval is None else f" ± {row.interval:.3f}"
        lines.append(
            [
                NAMES[row.candidate],
                f"`{_layers(row.candidate)}`",
                f"**{row.score:.3f}**{interval}",
                *(accuracy(row.tasks.get(task)) for task in tasks),
                f"{row.params:,}",
                f"{row.state:,}",
                f"{row.seconds / row.n_runs:.1f}",
                status(row),
            ]
        )
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _layers(candidate: str) -> str:
    return {canonical(parse(v)): v for v in (*FOUR.values(), *EIGHT_BLOCKS.values())}[candidate]


def _settings(suite: Suite) -> list[tuple[str, str]]:
    """What each task of the suite is."""
    lines = []
    for setting in suite.settings:
        words = [f"{name} {value}" for name, value in setting.settings.items()]
        words += [f"{name} {value}" for name, value in setting.protocol.items()]
        lines.append((f"{setting.task}, {setting.label}", ", ".join(words)))
    return lines if suite.name != "full" else []


def _troubles(ranking: Ranking) -> list[str]:
    lost = [record for record in ranking.records if record.status in ("failed", "diverged")]
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


def _json(ranking: Ranking, parallel: int) -> dict[str, Any]:
    document = to_json(ranking)
    for row in document["candidates"]:
        row["name"] = NAMES[row["layers"]]
    document["troubles"] = [
        {key: value for key, value in trouble.items() if key != "host"}
        for trouble in document["troubles"]
    ]
    document["facts"].pop("hosts", None)
    return {
        "command": _command(ranking),
        **document,
        "parallel": parallel,
        "machine": _machine(),
        "versions": versions("mlxhog", "torch", "mlx", "numpy"),
        "commit": commit(),
    }


def _command(ranking: Ranking) -> str:
    extra = "" if ranking.suite == "smoke" else f" --suite {ranking.suite}"
    return f"python benchmarks/mad_table.py{extra}"


def _machine() -> str:
    packages = versions("torch")
    return (
        f"{len(cores())} cores, {platform.machine()}, {platform.system()}, "
        f"Python {packages['python']}, torch {packages['torch']}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
