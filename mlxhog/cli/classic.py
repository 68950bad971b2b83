"""`mlxhog classic`: the Hogwild paper's own problems, scheme by scheme."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from mlxhog.base.quantities import format_count, format_duration
from mlxhog.classic.config import ClassicConfig
from mlxhog.cli.flags import quiet_flag
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import argument, switch
from mlxhog.errors import ConfigError
from mlxhog.report.views import StatusLine

if TYPE_CHECKING:
    from mlxhog.base.interrupts import Interrupts
    from mlxhog.classic.problem import Problem
    from mlxhog.classic.result import ClassicProgress, ClassicResult
    from mlxhog.report.table import Section

ABOUT = """\
Solve one of the Hogwild paper's problems with several processes on one arena, beside plain serial
SGD. Without --data the data are generated, with the statistics of the paper. Without PROBLEM it
lists the problems. Every number but "start-up" is of the native loops only: measurement and
shuffling are not timed.

lost updates: after the last epoch the workers process the examples once more, and increment a
counter with the writes of the scheme, once per touch of the busiest shared coordinate; the missing
increments were lost. Other coordinates lose fewer."""
EXAMPLES = (
    "classic",
    "classic svm --workers 2",
    "classic svm --workers 2 --write racy --active-rows",
    "classic matrix-completion --rank 32 --scheme round_robin",
    "classic graph-cuts --json",
    "classic svm --data rcv1_train.svm --stats",
)
MAIN = (
    "data", "test_data", "labels", "size", "workers", "scheme", "write", "epochs", "lr",
    "batch_size", "seed", "stats", "all", "json",
)  # fmt: skip
EXIT_CODES = {"done": 0, "diverged": 4, "interrupted": 130}
OFTEN = 0.5
"""Probability that two examples meet, above which a problem is called dense."""
REDRAW_S = 0.2
LINE_S = 5.0
"""Seconds between lines of a pipe."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """Flags beside the options of the problem."""

    problem: str | None = argument("[PROBLEM]", "see the list: mlxhog classic")
    no_serial: bool = switch("leave out the serial reference")
    stats: bool = switch("measure the problem's sparsity instead of solving it")
    all: bool = switch("all numbers, not only the main ones")
    json: bool = switch("end with one line of JSON")
    quiet: bool = quiet_flag()


@command("classic", ABOUT, EXAMPLES, Words, ClassicConfig, main=MAIN)
def run(words: Words, config: ClassicConfig) -> Report:
    """Solve a problem."""
    from mlxhog.classic import problems

    if words.problem is None:
        if config != ClassicConfig() or words.stats:
            raise ConfigError(
                "name the problem, as in `mlxhog classic svm`; `mlxhog classic` lists them"
            )
        entries = [{"name": n, "about": about} for n, (about, _) in problems.PROBLEMS.items()]
        width = max(map(len, problems.PROBLEMS))
        lines = [f"{entry['name']:{width}}  {entry['about']}" for entry in entries]
        return Report({"problems": entries}, lambda: "\n".join(lines))
    # The rest imports NumPy and the native module.
    from mlxhog.base import machine
    from mlxhog.base.interrupts import Interrupts
    from mlxhog.classic.result import sections, warnings
    from mlxhog.classic.run import compare, train

    load = os.getloadavg()[0]
    with StatusLine(sys.stderr, quiet=words.quiet) as status:
        status.show("generating the data" if config.data is None else f"reading {config.data}")
        problem = problems.create(words.problem, config)
        if words.stats:
            status.show("counting which examples meet")
            return _stats(problem)
    serial: ClassicResult | None = None
    remarks = list[str]()
    with (
        Interrupts() as signals,
        ClassicLine(sys.stderr, quiet=words.quiet, signals=signals) as line,
    ):
        if words.no_serial:
            result = train(problem, config, line)
        else:
            result, serial = compare(problem, config, line)
            if result is serial and result.status == "diverged" and config.scheme != "serial":
                remarks.append(f"serial diverged, so {config.scheme} was not begun")
    if result.status == "interrupted" and not words.quiet:
        remarks.append(f"interrupted after {len(result.epochs)} epochs of {result.scheme}")
    remarks += [result.advice] if result.advice else []

    def text() -> Iterable[Section]:
        notes = [] if result.status == "diverged" else warnings(result, load, machine.here().cores)
        return sections(problem.about, result, serial, notes, everything=words.all)

    return Report(result.to_json(serial), text, EXIT_CODES[result.status], remarks)


def _stats(problem: Problem) -> Report:
    """Report the sparsity of the problem, as in the paper."""
    from mlxhog.report.table import AnswerNote, Section
    from mlxhog.theory.hypergraph import Hypergraph

    graph = Hypergraph(*problem.supports())
    facts = {
        "problem": problem.name,
        "examples": len(graph),
        "coordinates": graph.n,
        "omega": graph.omega,
        "delta": graph.delta,
        "rho": graph.rho,
        "p_conf": graph.p_conf,
    }
    rows = [
        ("Omega", f"{graph.omega:,}", "coordinates of the largest example"),
        ("Delta", f"{graph.delta:.4g}", "share of the examples that touch the busiest coordinate"),
        ("rho", f"{graph.rho:.4g}", "share of the examples that the busiest example meets"),
        ("p_conf", f"{graph.p_conf:.4g}", "probability that two examples meet"),
    ]
    title = f"{problem.name}: {problem.about}"
    kind = "Dense" if graph.p_conf > OFTEN else "Sparse"
    answer = AnswerNote(f"{kind}: two examples meet with probability {graph.p_conf:.3g}")
    return Report(facts, lambda: [answer, Section(title, ("", "value", "what"), rows)])


class ClassicLine(StatusLine):
    """Shows the progress of classic runs, one after another, on a line, and passes Ctrl-C on.

    Args:
        stream: where to write.
        quiet: write nothing.
        signals: counted during the run; the first one ends it.
    """

    def __init__(self, stream: TextIO, *, quiet: bool, signals: Interrupts) -> None:
        super().__init__(stream, quiet=quiet)
        self._signals, self._scheme, self._began_s = signals, "", 0.0
        self._next_s = time.monotonic() + (0.0 if self.live else LINE_S)

    def __call__(self, progress: ClassicProgress) -> None:
        """Write a message, or redraw the line at most every `REDRAW_S`.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        if progress.message is not None:
            self.tell(progress.message)
            return
        if self._signals.count:
            raise KeyboardInterrupt
        now = time.monotonic()
        if progress.scheme != self._scheme:
            self._scheme, self._began_s = progress.scheme, now
        if self.quiet or now < self._next_s:
            return
        self._next_s = now + (REDRAW_S if self.live else LINE_S)
        show = self.show if self.live else self.tell
        show(_progress_line(progress, now - self._began_s))


def _progress_line(progress: ClassicProgress, seconds: float) -> str:
    """Return epoch, objective, pace and time to the end of a run."""
    epoch, epochs = progress.epoch, progress.epochs
    ended = 0 if epoch is None else epoch.number
    part = ended + min(1.0, progress.done / progress.examples)
    parts = [progress.scheme, f"epoch {min(ended + 1, epochs)}/{epochs}"]
    if epoch is not None:
        rate = epoch.examples / max(epoch.seconds, 1e-9)
        parts += [f"objective {epoch.objective:.5g}", f"{format_count(rate)} examples/s"]
    if part > 0:
        parts.append(f"{format_duration((epochs - part) * seconds / part)} to go")
    return "  ".join(parts)
