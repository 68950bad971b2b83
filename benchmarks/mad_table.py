"""A table of MAD scores: xLSTM's layers beside attention and linear recurrences, with intervals.

    python benchmarks/mad_table.py                        suite smoke: 20 minutes on two cores
    python benchmarks/mad_table.py --suite lite --dry-run what the long run takes here, measured
    python benchmarks/mad_table.py --suite lite           the six baselines of the benchmark

It is a study (`mlxhog mad board studies/mad-table-smoke`): interrupt it at any time, and the same
command continues. The table is written beside this script after every session; one that lacks runs
says so. Every candidate has four layers at the suite's width, but xLSTM[7:1], whose ratio needs
eight blocks: it stands apart, with what it costs.
"""

from pathlib import Path

from harness.claims import measured
from harness.machine import ROOT, cores, smallest
from mad.table import MEANINGS, Table, places, table_flags, write

from mlxhog.cli.mad.session import seeds
from mlxhog.mad.options import ExecutionConfig

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


def table_of(suite):
    """The table of a suite."""
    extra = "" if suite == "smoke" else f" --suite {suite}"
    return Table(
        name=f"mad-table-{suite}",
        layers={**FOUR, **EIGHT_BLOCKS},
        suite=suite,
        seeds=seeds(smallest("1", "3")),
        tasks=smallest(("memorization",), ()),
        command=f"python benchmarks/mad_table.py{extra}",
    )


def main():
    """Run what is missing, and write the table."""
    parser = table_flags(__doc__)
    parser.add_argument("--suite", default="smoke", choices=("smoke", "lite", "full"))
    chosen = parser.parse_args()
    if chosen.dry_run:
        parallel = chosen.parallel or len(cores())
        table_of(chosen.suite).print_eta(ExecutionConfig(parallel=parallel, out=chosen.studies))
        return 0
    with places(chosen):
        return measured("mad_table", chosen, measure, packages=("torch", "mlx"))


def measure(findings, chosen):
    """Run what is missing, and write the table."""
    table, parallel = table_of(chosen.suite), chosen.parallel or len(cores())
    how = ExecutionConfig(parallel=parallel, out=chosen.studies)
    ranking, ended = table.run(how, quiet=chosen.quiet, table_only=chosen.table_only)
    suffix = "" if chosen.suite == "smoke" else f"_{chosen.suite}"
    path = Path(chosen.out or ROOT / "benchmarks") / f"mad_table{suffix}"
    write(path, markdown(table, ranking, parallel), table.document(ranking, parallel))
    if ended == "interrupted":
        raise SystemExit(130)


def markdown(table, ranking, parallel):
    """The table with what it was made with and what it lacks."""
    four = [row for row in ranking.rows if len(row.layers) == 4]
    deep = [row for row in ranking.rows if len(row.layers) > 4]
    lines = [
        f"# MAD scores, suite `{ranking.suite}`",
        "",
        f"    {table.command}",
        "",
        table.made(ranking, parallel),
        "",
        MEANINGS,
        "",
        *table.rows(four, ranking.tasks),
        "",
    ]
    if deep:
        about = "Eight blocks, so four times the layers; compare its cost, not its rank:"
        lines += [about, "", *table.rows(deep, ranking.tasks), ""]
    if ranking.suite != "full":
        lines += [
            "Not the benchmark's own difficulty grid: see `mlxhog/mad/suites/` for the settings. "
            "These scores say what each stack learns within the steps below, and do not compare "
            "with published ones.",
            "",
        ]
    return "\n".join([*lines, *table.facts(ranking)]) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
