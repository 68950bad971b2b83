"""The outcome of a run of a classic problem: as records and JSON, as a table, in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlxhog.classic.problem import Float32
from mlxhog.files.quantities import format_count
from mlxhog.report.table import Answer, Failure, Section


class Observer(Protocol):
    """Calls made by the host while the workers work; none of them may block."""

    def began(self, scheme: str, epochs: int, examples: int) -> None:
        """A run begins, such as "serial"; it has `epochs` of `examples` each."""

    def progress(self, done: int) -> None:
        """`done` examples of the present epoch are done; called many times a second.

        It may raise KeyboardInterrupt, which ends the run: its present epoch is not measured.
        """

    def epoch(self, epoch: Epoch) -> None:
        """An epoch has ended and was measured."""

    def tell(self, message: str) -> None:
        """Something happened that the user should know, such as a worker that died."""


class NoObserver:
    """The observer of a run that nobody watches."""

    def began(self, scheme: str, epochs: int, examples: int) -> None:
        """Ignore the beginning."""

    def progress(self, done: int) -> None:
        """Ignore the progress."""

    def epoch(self, epoch: Epoch) -> None:
        """Ignore the epoch."""

    def tell(self, message: str) -> None:
        """Ignore the message."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the examples.

    Attributes:
        number: from 1.
        lr: its step size gamma.
        seconds: from the first worker's first example to the last worker's last, averaging of
            copies included, evaluation and shuffling left out.
        native_s: seconds inside the native loops, added up over workers.
        examples: done in it.
        measures: "objective" and what else the problem measures, after it.
    """

    number: int
    lr: float
    seconds: float
    native_s: float
    examples: int
    measures: dict[str, float]

    @property
    def objective(self) -> float:
        """Objective after it; NaN or infinite where it diverged."""
        return self.measures["objective"]

    def to_json(self) -> dict[str, Any]:
        """As a row of the JSON answer."""
        return {
            "epoch": self.number,
            "lr": self.lr,
            "seconds": self.seconds,
            "native_s": self.native_s,
            "examples": self.examples,
            **self.measures,
        }


@dataclass(frozen=True)
class ClassicResult:
    """One run.

    Attributes:
        problem: its name.
        scheme: its name.
        write: "racy", "lossless" or "hot-cold"; "" where the scheme has one way to write.
        handout: how work was handed out.
        workers: processes.
        status: "done", "diverged" or "interrupted".
        start_s: spawning workers until all had mapped the arena; in no other number, but where
            workers are spawned for every epoch: then all but the first spawning is in `seconds`.
        initial: measures before the first epoch.
        epochs: in order.
        lost_updates: increments of the probe that never arrived; see `session.py`.
        probe_updates: increments of the probe; 0 where nobody shares parameters.
        missed: examples that no worker did, because one died.
        replaced: workers that died and were replaced.
        advice: what to do about a run that diverged, else "".
        params: the parameters at the end by name, copies.
    """

    problem: str
    scheme: str
    write: str
    handout: str
    workers: int
    status: str
    start_s: float
    initial: dict[str, float]
    epochs: tuple[Epoch, ...]
    lost_updates: int = 0
    probe_updates: int = 0
    missed: int = 0
    replaced: int = 0
    advice: str = ""
    params: Mapping[str, Float32] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def examples(self) -> int:
        """Examples of all epochs."""
        return sum(epoch.examples for epoch in self.epochs)

    @property
    def examples_per_s(self) -> float:
        """Examples per second; 0 before any was done."""
        return self.examples / self.seconds if self.seconds > 0 else 0.0

    @property
    def measures(self) -> dict[str, float]:
        """Measures at the end."""
        return self.epochs[-1].measures if self.epochs else self.initial

    @property
    def objective(self) -> float:
        """Objective at the end; NaN or infinite where it diverged."""
        return self.measures["objective"]

    def to_json(self, serial: ClassicResult | None) -> dict[str, Any]:
        """One object; the numbers that users look for stand last.

        Args:
            serial: the reference of the same command, if there was one.
        """
        return {
            "status": self.status,
            "write": self.write,
            "handout": self.handout,
            "start_s": self.start_s,
            "native_s": sum(epoch.native_s for epoch in self.epochs),
            "examples": self.examples,
            "missed": self.missed,
            "replaced": self.replaced,
            "measures": self.measures,
            "serial_measures": None if serial is None else serial.measures,
            "speedup": self.speedup(serial),
            "epochs": [epoch.to_json() for epoch in self.epochs],
            "advice": self.advice,
            "probe_updates": self.probe_updates,
            "problem": self.problem,
            "scheme": self.scheme,
            "workers": self.workers,
            "seconds": self.seconds,
            "examples_per_s": self.examples_per_s,
            "objective": self.objective,
            "serial_objective": None if serial is None else serial.objective,
            "lost_updates": self.lost_updates,
        }

    def speedup(self, serial: ClassicResult | None) -> float | None:
        """Examples per second against the serial reference's."""
        if serial is None or serial is self or not serial.examples_per_s:
            return None
        return self.examples_per_s / serial.examples_per_s


NEAR = 0.005  # of serial's objective: what counts as the same here
BUSY = 0.3  # load average per core from which on speeds say little


def sections(
    about: str,
    result: ClassicResult,
    serial: ClassicResult | None,
    notes: Sequence[str],
    *,
    everything: bool,
) -> list[Section]:
    """The answer, and the numbers of a run beside serial's where there is a run of its own.

    Args:
        about: what the data are.
        result: of the run.
        serial: the reference, or None.
        notes: from `explain`.
        everything: all numbers, or objective, errors and speed.
    """
    runs = [result] if serial is None or serial is result else [serial, result]
    rows: list[tuple[str, ...]] = [
        (name.replace("_", " "), *(f"{run.measures[name]:.6g}" for run in runs))
        for name in result.measures
        if everything or not name.endswith("_loss")
    ]
    rows += [
        (name, *map(spell, runs))
        for name, spell in _TABLE_ROWS.items()
        if everything or name in MAIN_ROWS
    ]
    header = ("", *(run_label(run) for run in runs))
    title = f"{result.problem}: {about}"
    return [
        Section("", notes=[answer(result, serial)]),
        Section(title, header, rows, ["", *notes] if notes else ()),
    ]


def answer(result: ClassicResult, serial: ClassicResult | None) -> str:
    """How the run came out, in a line."""
    who = run_label(result)
    if result.status == "diverged":
        return Failure(f"{who}: diverged in epoch {len(result.epochs)}")
    ended = "interrupted after" if result.status == "interrupted" else "after"
    speedup = result.speedup(serial)
    if speedup is None or serial is None or len(result.epochs) < len(serial.epochs):
        return Answer(
            f"{who}: objective {result.objective:.5g} {ended} {len(result.epochs)} epochs"
        )
    reference = serial.objective
    if result.objective == reference:
        apart = "serial's objective"
    elif reference:
        apart = f"objective {result.objective / reference - 1:+.2%} from serial's"
    else:
        apart = f"objective {result.objective:.5g}"
    return Answer(f"{who}: {apart}, {speedup:.2f} x its speed")


def run_label(run: ClassicResult) -> str:
    """The scheme of a run and how many work in it."""
    write = f" {run.write}" if run.write else ""
    return f"{run.scheme}{write}, {run.workers} worker{'s' * (run.workers > 1)}"


def _lost_updates(run: ClassicResult) -> str:
    return f"{run.lost_updates:,} of {run.probe_updates:,}" if run.probe_updates else "-"


MAIN_ROWS = ("seconds", "examples/s", "lost updates")
_TABLE_ROWS: dict[str, Callable[[ClassicResult], str]] = {
    "epochs": lambda run: str(len(run.epochs)),
    "seconds": lambda run: f"{run.seconds:.3f}",
    "examples/s": lambda run: format_count(run.examples_per_s),
    "start-up, seconds": lambda run: f"{run.start_s:.2f}",
    "lost updates": _lost_updates,
}


def explain(
    result: ClassicResult, serial: ClassicResult | None, load: float, cores: int
) -> Sequence[str]:
    """Sentences that say what the numbers mean.

    Args:
        result: of the run.
        serial: the reference, or None.
        load: runnable processes when the command began, the load average of a minute.
        cores: cores that they share.
    """
    quiet = result.workers <= cores and load <= BUSY * cores
    sentences = []
    if result.epochs and result.objective > result.initial["objective"]:
        sentences.append(
            f"The objective rose from {result.initial['objective']:.4g}: the step size is too "
            f"large; try --lr {result.epochs[0].lr / 10:g}."
        )
    if serial is not None and serial is not result and serial.epochs and result.epochs:
        sentences += [
            *_explain_objective(result, serial),
            *_explain_speed(result, serial, quiet=quiet),
        ]
    if result.probe_updates:
        sentences.append(_explain_lost_updates(result))
    if result.missed:
        sentences.append(f"{result.missed:,} examples were not trained, because workers died.")
    if result.workers > cores:
        sentences.append(
            f"{result.workers} workers share {cores} core{'s' * (cores > 1)}: no speedup can show."
        )
    elif not quiet:
        sentences.append(
            f"Busy machine (load {load:.1f} on {cores} cores): the speeds say little; try again "
            "when it is quiet."
        )
    return sentences


def _explain_objective(result: ClassicResult, serial: ClassicResult) -> list[str]:
    reference = serial.epochs[len(result.epochs) - 1].objective
    if not reference:
        return []
    if result.objective == reference:
        return ["The objective is serial's, to the last digit."]
    apart = result.objective / reference - 1
    side = "above" if apart > 0 else "below"
    if abs(apart) <= NEAR:
        return [f"The objective is serial's, {abs(apart):.2%} {side} it, after equal epochs."]
    if apart < 0:
        return [f"The objective is {-apart:.1%} below serial's after equal epochs."]
    why = {
        "sync": f": a mean of {result.workers} gradients is one step, so it takes fewer of them; "
        "a larger --lr may make up for it",
        "avg_runs": ": each worker sees only its share, and averaging copies is not the same as "
        "going on from one",
    }.get(result.scheme, f": with {result.workers} workers each step begins from older values")
    return [f"The objective is {apart:.1%} above serial's after equal epochs{why}."]


def _explain_speed(result: ClassicResult, serial: ClassicResult, *, quiet: bool) -> list[str]:
    speedup = result.speedup(serial)
    if speedup is None or result.workers == 1:
        return []
    sentence = f"{result.workers} workers did {speedup:.2f} x the examples per second of serial"
    if speedup >= 1 or not quiet:
        return [f"{sentence}."]
    return [f"{sentence}: waiting and moving shared cache lines costs more here than it gains."]


def _explain_lost_updates(result: ClassicResult) -> str:
    if not result.lost_updates:
        return f"No update was lost, of {result.probe_updates:,} that were counted."
    rate = result.lost_updates / result.probe_updates
    return (
        f"Lost updates: {rate:.2%} of those of a counter that is raised as often as the busiest "
        "coordinate that workers share is touched; others lose less."
    )
