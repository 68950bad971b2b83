"""`mlxhog classic`: the Hogwild paper's own problems, and predictions of one that was solved."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mlxhog.cli.flags import Flags
from mlxhog.cli.output import print_json, print_sections
from mlxhog.errors import ConfigError
from mlxhog.files.paths import expanded
from mlxhog.files.quantities import format_count, format_duration
from mlxhog.report.views import StatusLine

if TYPE_CHECKING:
    from mlxhog.classic.config import ClassicConfig
    from mlxhog.classic.problem import Problem
    from mlxhog.classic.result import ClassicProgress, ClassicResult
    from mlxhog.machine.interrupts import Interrupts

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
    "classic svm --data train.svm --save svm.safetensors",
    "classic predict svm.safetensors test.svm --out predictions.txt",
)
MAIN = (
    "data", "test_data", "labels", "size", "workers", "scheme", "write", "epochs", "lr",
    "batch_size", "seed", "stats", "save", "all", "json",
)  # fmt: skip
PROBLEM = "PROBLEM"
PREDICT = "predict"
EXIT_CODES = {"done": 0, "diverged": 4, "interrupted": 130}
OFTEN = 0.5
"""Probability that two examples meet, above which a problem is called dense."""
REDRAW_S = 0.2
LINE_S = 5.0
"""Seconds between lines of a pipe."""


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    if arguments[:1] == [PREDICT]:
        return _predict(arguments[1:])
    from mlxhog.classic.config import ClassicConfig

    flags = Flags("classic", ABOUT, EXAMPLES, (f"[{PROBLEM}]",), MAIN)
    flags.argument("problem", nargs="?", metavar=PROBLEM, help="see the list: mlxhog classic")
    flags.argument("--no-serial", action="store_true", help="leave out the serial reference")
    flags.argument(
        "--stats", action="store_true", help="measure the problem's sparsity instead of solving it"
    )
    flags.argument("--save", metavar="FILE", help="write the weights into this file")
    flags.argument("--all", action="store_true", help="all numbers, not only the main ones")
    flags.argument("--json", action="store_true", help="end with one line of JSON")
    flags.quiet()
    parsed, config = flags.read(ClassicConfig, arguments)
    how = parsed.other
    if how.problem is None:
        if parsed.values or how.stats:
            raise ConfigError(
                "name the problem, as in `mlxhog classic svm`; `mlxhog classic` lists them"
            )
        _list(as_json=how.json)
        return 0
    return _solve(how.problem, config, how)


def _list(*, as_json: bool) -> None:
    from mlxhog.classic.problems import PROBLEMS

    if as_json:
        entries = [{"name": name, "about": entry.about} for name, entry in PROBLEMS.items()]
        print_json({"problems": entries})
        return
    width = max(map(len, PROBLEMS))
    for name, entry in PROBLEMS.items():
        print(f"{name:{width}}  {entry.about}")


def _solve(name: str, config: ClassicConfig, how: Any) -> int:
    from mlxhog.classic import problems
    from mlxhog.classic.session import compare, train
    from mlxhog.machine.interrupts import Interrupts

    load = os.getloadavg()[0]
    target = None if how.save is None else expanded(how.save)
    if target is not None:
        from mlxhog.classic.model import check_target

        check_target(target)
    with StatusLine(sys.stderr, quiet=how.quiet) as status:
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
    if target is not None:
        _save(problem, result, target, config.data, how)
    return EXIT_CODES[result.status]


def _save(
    problem: Problem, result: ClassicResult, target: Path, data: str | None, how: Any
) -> None:
    from mlxhog.classic.model import save

    if result.status == "diverged" or not result.epochs:
        print(f"{target} was not written: nothing was learnt", file=sys.stderr)
        return
    save(problem, result.params, result.measures, target)
    if not (how.json or how.quiet):
        predict = f"mlxhog classic predict {shlex.quote(str(target))}"
        if data is None:
            print(f"its predictions for your rows: {predict} FILE")
        else:
            print(f"next: {predict} {shlex.quote(data)} --out predictions.txt")


def _print(
    problem: Problem,
    result: ClassicResult,
    serial: ClassicResult | None,
    load: float,
    how: Any,
) -> None:
    from mlxhog.classic.result import explain, sections
    from mlxhog.machine import machine

    if result.status == "interrupted" and not how.quiet:
        print(f"interrupted after {len(result.epochs)} epochs of {result.scheme}", file=sys.stderr)
    if result.advice:
        print(result.advice, file=sys.stderr)
    if how.json:
        print_json(result.to_json(serial))
        return
    if how.quiet:
        return
    remarks: Sequence[str] = ()
    if result.status != "diverged":
        remarks = explain(result, serial, load, machine.here().cores)
    parts = sections(problem.about, result, serial, remarks, everything=how.all)
    print_sections(parts)


def _stats(problem: Problem, how: Any) -> None:
    """Print the sparsity of the problem, as in the paper."""
    from mlxhog.report.table import AnswerNote, Section
    from mlxhog.theory.hypergraph import Hypergraph

    graph = Hypergraph(*problem.supports())
    statistics = {
        "problem": problem.name,
        "examples": len(graph),
        "coordinates": graph.n,
        "omega": graph.omega,
        "delta": graph.delta,
        "rho": graph.rho,
        "p_conf": graph.p_conf,
    }
    if how.json:
        print_json(statistics)
        return
    if how.quiet:
        return
    rows = [
        ("Omega", f"{graph.omega:,}", "coordinates of the largest example"),
        ("Delta", f"{graph.delta:.4g}", "share of the examples that touch the busiest coordinate"),
        ("rho", f"{graph.rho:.4g}", "share of the examples that the busiest example meets"),
        ("p_conf", f"{graph.p_conf:.4g}", "probability that two examples meet"),
    ]
    title = f"{problem.name}: {problem.about}"
    kind = "Dense" if graph.p_conf > OFTEN else "Sparse"
    answer = AnswerNote(f"{kind}: two examples meet with probability {graph.p_conf:.3g}")
    parts = [Section("", notes=[answer]), Section(title, ("", "value", "what"), rows)]
    print_sections(parts)


class ClassicLine(StatusLine):
    """Shows the progress of classic runs, one after another, on a line, and passes Ctrl-C on.

    Args:
        stream: where to write.
        quiet: write nothing.
        signals: counted during the run; the first one ends it.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: bool,
        signals: Interrupts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream, quiet=quiet)
        self._signals, self._clock = signals, clock
        self._scheme, self._began_s = "", 0.0
        self._next_s = clock() + (0.0 if self.live else LINE_S)

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
        now = self._clock()
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


# -- mlxhog classic predict ------------------------------------------------------------------------

PREDICT_ABOUT = """\
Print the predictions of the weights of `mlxhog classic PROBLEM --save MODEL` for FILE, which has
the format of the problem's data. A line for every example, in the file's order, with columns
separated by tabs:

svm, synthetic-svm                 LABEL SCORE, the score's sign is the label
logistic                           LABEL PROBABILITY, of the positive label
least-squares, linear-regression   VALUE; where labels are -1 and +1, LABEL VALUE
image-svm                          CLASS SCORE
matrix-completion                  USER ITEM RATING
graph-cuts                         VERTEX LABEL, each vertex once; ? where it was in no edge

They go to standard output, or to --out. Their accuracy goes to stderr, beside that on the test data
of training. Labels and ratings outside the range are predicted and not counted."""
PREDICT_EXAMPLES = (
    "classic predict svm.safetensors test.svm",
    "classic predict svm.safetensors test.svm --out predictions.txt",
    "classic predict ratings.safetensors ratings.csv --json",
)


def _predict(arguments: list[str]) -> int:
    """Run `mlxhog classic predict`; returns its exit code."""
    flags = Flags("classic predict", PREDICT_ABOUT, PREDICT_EXAMPLES, ("MODEL", "FILE"))
    flags.argument("model", metavar="MODEL", help="a file of weights")
    flags.argument("file", metavar="FILE", help="data; .gz and .bz2 are unpacked")
    flags.argument("--out", metavar="PATH", help="write the predictions into this file")
    flags.argument("--json", action="store_true", help="one JSON object without predictions")
    flags.argument("--quiet", action="store_true", help="no accuracy; with --out only errors")
    parsed = flags.parse(arguments)
    if parsed.problems:
        raise ConfigError("\n".join(parsed.problems))
    how = parsed.other
    # These import NumPy: wrong flags are reported before.
    from mlxhog.classic import model as models
    from mlxhog.files.durable import disk_errors, replace_file
    from mlxhog.report.streams import verbatim

    target = None if how.out is None else expanded(how.out)
    if target is not None:
        models.check_target(target)
    model = models.load(expanded(how.model))
    prediction = models.predict(model, expanded(how.file))
    if target is not None:
        with disk_errors(f"writing {target}"):
            replace_file(target, "".join(f"{line}\n" for line in prediction.lines()).encode())
    if how.json:
        record = {
            "problem": model.problem,
            "examples": prediction.examples,
            "unknown": prediction.unknown,
            "measure": prediction.measure,
            "value": prediction.value,
            "trained": prediction.trained,
            "out": None if target is None else str(target),
        }
        print_json(record)
        return 0
    if not how.quiet:
        out = sys.stderr if target is None else sys.stdout
        print(models.answer(model, prediction), file=out)
    if target is None:
        data = verbatim(sys.stdout)  # it keeps tabs
        for line in prediction.lines():
            data.write(f"{line}\n")
    return 0
