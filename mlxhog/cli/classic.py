"""`mlxhog classic`: the Hogwild paper's own problems."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import Flags
from mlxhog.config.sources import resolve
from mlxhog.errors import ConfigError
from mlxhog.report.views import may_redraw

if TYPE_CHECKING:
    from mlxhog.classic.config import ClassicConfig
    from mlxhog.classic.problem import Problem
    from mlxhog.classic.result import ClassicResult

ABOUT = """\
Solve one of the Hogwild paper's problems with several processes on one arena, beside plain serial
SGD. Without --data the data are generated, with the statistics of the paper's. Without PROBLEM:
the list of problems. Every number but "start-up" is of the native loops alone: measuring and
shuffling lie outside of the clock.

lost updates: after the last epoch the workers go through the examples once more and raise a
counter, in the way in which the scheme writes, as often as the busiest coordinate that they share
is touched; what it lacks in the end was lost. Other coordinates lose less."""
EXAMPLES = (
    "classic",
    "classic svm --workers 2",
    "classic svm --workers 2 --write racy --active-rows",
    "classic matrix-completion --rank 32 --scheme round_robin",
    "classic graph-cuts --json",
    "classic svm --data rcv1_train.svm --stats",
)
PROBLEM = "PROBLEM"
EXIT_CODES = {"done": 0, "diverged": 4, "interrupted": 130}


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    from mlxhog.classic.config import ClassicConfig

    flags = Flags("classic", ABOUT, EXAMPLES, (f"[{PROBLEM}]",))
    flags.argument("problem", nargs="?", metavar=PROBLEM, help="see the list: mlxhog classic")
    flags.argument("--no-serial", action="store_true", help="leave out the serial reference")
    flags.argument(
        "--stats", action="store_true", help="measure the problem's sparsity instead of solving it"
    )
    flags.argument("--json", action="store_true", help="end with one line of JSON")
    flags.argument("--quiet", action="store_true", help="no progress")
    flags.options(ClassicConfig)
    parsed = flags.parse(arguments)
    config = resolve(ClassicConfig, [parsed.given], parsed.problems)
    how = parsed.other
    if how.problem is None:
        if parsed.given or how.stats:
            raise ConfigError(
                "name the problem, as in `mlxhog classic svm`; `mlxhog classic` lists them"
            )
        _list(as_json=how.json)
        return 0
    return _solve(how.problem, config, how)


def _list(*, as_json: bool) -> None:
    from mlxhog.classic.problems import PROBLEMS

    if as_json:
        from mlxhog.files import plain_json

        found = [{"name": name, "about": entry.about} for name, entry in PROBLEMS.items()]
        print(plain_json.dumps({"problems": found}).decode())
        return
    width = max(map(len, PROBLEMS))
    for name, entry in PROBLEMS.items():
        print(f"{name:{width}}  {entry.about}")


def _solve(name: str, config: ClassicConfig, how: Any) -> int:
    from mlxhog.classic import problems
    from mlxhog.classic.session import compare, train
    from mlxhog.cli.classic_line import ClassicLine
    from mlxhog.machine.interrupts import Interrupts
    from mlxhog.report.status_line import StatusLine

    load = os.getloadavg()[0]
    with StatusLine(sys.stderr, live=may_redraw(sys.stderr, quiet=how.quiet)) as status:
        status.show("generating the data" if config.data is None else f"reading {config.data}")
        problem = problems.create(name, config)
        if how.stats:
            status.show("counting which examples meet")
            _stats(problem, how)
            return 0
    serial: ClassicResult | None = None
    with Interrupts() as signals, ClassicLine(sys.stderr, quiet=how.quiet, signals=signals) as line:
        if how.no_serial:
            result = train(problem, config, line)
        else:
            result, serial = compare(problem, config, line)
            if result is serial and result.status == "diverged" and config.scheme != "serial":
                print(f"serial diverged, so {config.scheme} was not begun", file=sys.stderr)
    _print(problem, result, serial, load, how)
    return EXIT_CODES[result.status]


def _print(
    problem: Problem,
    result: ClassicResult,
    serial: ClassicResult | None,
    load: float,
    how: Any,
) -> None:
    from mlxhog.classic import summary
    from mlxhog.files import plain_json
    from mlxhog.machine import machine
    from mlxhog.report.table import show

    if result.status == "interrupted":
        print(f"interrupted after {len(result.epochs)} epochs of {result.scheme}", file=sys.stderr)
    if result.advice:
        print(result.advice, file=sys.stderr)
    if how.json:
        print(plain_json.dumps(result.to_json(serial)).decode())
        return
    said: Sequence[str] = ()
    if result.status != "diverged":
        said = summary.meaning(result, serial, load, machine.here().cores)
    part = summary.table(problem.about, result, serial, said)
    show([part], sys.stdout, plain=not may_redraw(sys.stdout, quiet=how.quiet))


def _stats(problem: Problem, how: Any) -> None:
    """Print how sparse the problem is, as the paper counts it."""
    from mlxhog.files import plain_json
    from mlxhog.report.table import Section, show
    from mlxhog.theory.hypergraph import Hypergraph

    graph = Hypergraph(*problem.supports())
    found = {
        "problem": problem.name,
        "examples": len(graph),
        "coordinates": graph.n,
        "omega": graph.omega,
        "delta": graph.delta,
        "rho": graph.rho,
        "p_conf": graph.p_conf,
    }
    if how.json:
        print(plain_json.dumps(found).decode())
        return
    rows = [
        ("Omega", f"{graph.omega:,}", "coordinates of the largest example"),
        ("Delta", f"{graph.delta:.4g}", "share of the examples that touch the busiest coordinate"),
        ("rho", f"{graph.rho:.4g}", "share of the examples that the busiest example meets"),
        ("p_conf", f"{graph.p_conf:.4g}", "probability that two examples meet"),
    ]
    title = f"{problem.name}: {problem.about}"
    part = Section(title, ("", "value", "what"), rows)
    show([part], sys.stdout, plain=not may_redraw(sys.stdout, quiet=how.quiet))
