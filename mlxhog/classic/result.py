"""The result of a run of a classic problem: as records and JSON, as a table, in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxhog.classic.problem import Float32
from mlxhog.files.quantities import format_count
from mlxhog.report.table import AnswerNote, FailureNote, Section


@dataclass(frozen=True)
class Epoch:
    """One pass over the examples.

    Attributes:
        number: its number, from 1.
        lr: its step size gamma.
        seconds: from the first worker's first example to the last worker's last one; with
            cyclades also the search for components.
        native_s: seconds inside the native loops, summed over workers.
        examples: examples done in the epoch.
        measures: "objective" and the problem's other measures, after the epoch.
    """

    number: int
    lr: float
    seconds: float
    native_s: float
    examples: int
    measures: dict[str, float]

    @property
    def objective(self) -> float:
        """Objective after the epoch; NaN or infinite if it diverged."""
        return self.measures["objective"]

    def to_json(self) -> dict[str, Any]:
        """A row of the JSON output."""
        return {
            "epoch": self.number,
            "lr": self.lr,
            "seconds": self.seconds,
            "native_s": self.native_s,
            "examples": self.examples,
            **self.measures,
        }


@dataclass(frozen=True, kw_only=True)
class ClassicProgress:
    """The progress of a run; an observer receives it many times a second.

    An observer may raise KeyboardInterrupt to end the run; its current epoch is not measured.

    Attributes:
        scheme: scheme of the run, such as "serial".
        epochs: number of its epochs.
        examples: number of examples in an epoch.
        epoch: the last measured epoch; None before the first one.
        done: number of examples done in the current epoch.
        message: a message for the user, such as the death of a worker; shown once.
    """

    scheme: str
    epochs: int
    examples: int
    epoch: Epoch | None = None
    done: int = 0
    message: str | None = None


@dataclass(frozen=True)
class ClassicResult:
    """One run.

    Attributes:
        problem: its name.
        scheme: its name.
        write: "racy", "lossless" or "hot-cold"; "" if the scheme has one way to write.
        workers: worker processes.
        status: "done", "diverged" or "interrupted".
        start_s: seconds from spawning the workers until all have mapped the arena; counted in no
            other number.
        initial: measures before the first epoch.
        epochs: in order.
        lost_updates: increments of the probe that were lost; see `run.py`.
        probe_updates: increments of the probe; 0 if lost updates were not counted.
        advice: the step size to try if the run diverged, else "".
        params: copies of the parameters at the end, by name.
    """

    problem: str
    scheme: str
    write: str
    workers: int
    status: str
    start_s: float
    initial: dict[str, float]
    epochs: tuple[Epoch, ...]
    lost_updates: int = 0
    probe_updates: int = 0
    advice: str = ""
    params: Mapping[str, Float32] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds of all epochs together."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def examples(self) -> int:
        """Examples done in all epochs together."""
        return sum(epoch.examples for epoch in self.epochs)

    @property
    def examples_per_s(self) -> float:
        """Examples per second; 0 before the first one."""
        return self.examples / self.seconds if self.seconds > 0 else 0.0

    @property
    def measures(self) -> dict[str, float]:
        """Measures at the end."""
        return self.epochs[-1].measures if self.epochs else self.initial

    @property
    def objective(self) -> float:
        """Objective at the end; NaN or infinite if it diverged."""
        return self.measures["objective"]

    def to_json(self, serial: ClassicResult | None) -> dict[str, Any]:
        """One JSON object; the numbers that users look for come last.

        Args:
            serial: the serial reference of the same command, or None.
        """
        return {
            "status": self.status,
            "write": self.write,
            "start_s": self.start_s,
            "native_s": sum(epoch.native_s for epoch in self.epochs),
            "examples": self.examples,
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
        """Examples per second, divided by those of the serial reference."""
        if serial is None or serial is self or not serial.examples_per_s:
            return None
        return self.examples_per_s / serial.examples_per_s


NEAR = 0.005  # relative difference from serial's objective that counts as equal
BUSY = 0.3  # load average per core above which speeds are not meaningful


def sections(
    about: str,
    result: ClassicResult,
    serial: ClassicResult | None,
    notes: Sequence[str],
    *,
    everything: bool,
) -> list[Section]:
    """The summary line, and the numbers of a run beside those of the serial reference, if any.

    Args:
        about: description of the data.
        result: result of the run.
        serial: result of the serial reference, or None.
        notes: the sentences of `explain`.
        everything: whether to show all numbers; else objective, errors and speed.
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
    """State the result of the run in one line."""
    who = run_label(result)
    if result.status == "diverged":
        return FailureNote(f"{who}: diverged in epoch {len(result.epochs)}")
    ended = "interrupted after" if result.status == "interrupted" else "after"
    speedup = result.speedup(serial)
    if speedup is None or serial is None or len(result.epochs) < len(serial.epochs):
        return AnswerNote(
            f"{who}: objective {result.objective:.5g} {ended} {len(result.epochs)} epochs"
        )
    reference = serial.objective
    if result.objective == reference:
        apart = "serial's objective"
    elif reference:
        apart = f"objective {result.objective / reference - 1:+.2%} from serial's"
    else:
        apart = f"objective {result.objective:.5g}"
    return AnswerNote(f"{who}: {apart}, {speedup:.2f} x its speed")


def run_label(run: ClassicResult) -> str:
    """The scheme of a run and its number of workers."""
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
    """Sentences that explain the numbers.

    Args:
        result: result of the run.
        serial: result of the serial reference, or None.
        load: load average over one minute when the command began.
        cores: cores of this machine.
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
    if result.workers > cores:
        sentences.append(
            f"{result.workers} workers share {cores} core{'s' * (cores > 1)}, so no speedup is "
            "possible."
        )
    elif not quiet:
        sentences.append(
            f"Busy machine (load {load:.1f} on {cores} cores): the speeds are not meaningful; try "
            "again when it is idle."
        )
    return sentences


def _explain_objective(result: ClassicResult, serial: ClassicResult) -> list[str]:
    reference = serial.epochs[len(result.epochs) - 1].objective
    if not reference:
        return []
    if result.objective == reference:
        return ["The objective equals serial's to the last digit."]
    apart = result.objective / reference - 1
    side = "above" if apart > 0 else "below"
    if abs(apart) <= NEAR:
        return [
            f"The objective is close to serial's, {abs(apart):.2%} {side} it, after equal epochs."
        ]
    if apart < 0:
        return [f"The objective is {-apart:.1%} below serial's after equal epochs."]
    why = {
        "sync": f": one step is the mean of {result.workers} gradients, so the run takes fewer "
        "steps; a larger --lr may compensate",
    }.get(result.scheme, f": with {result.workers} workers each step starts from older values")
    return [f"The objective is {apart:.1%} above serial's after equal epochs{why}."]


def _explain_speed(result: ClassicResult, serial: ClassicResult, *, quiet: bool) -> list[str]:
    speedup = result.speedup(serial)
    if speedup is None or result.workers == 1:
        return []
    sentence = f"{result.workers} workers do {speedup:.2f} x the examples per second of serial"
    if speedup >= 1 or not quiet:
        return [f"{sentence}."]
    return [f"{sentence}: waiting and moving cache lines between cores costs more than it gains."]


def _explain_lost_updates(result: ClassicResult) -> str:
    if not result.lost_updates:
        return f"None of the {result.probe_updates:,} counted updates was lost."
    rate = result.lost_updates / result.probe_updates
    return (
        f"Lost updates: {rate:.2%} of the increments of a counter as busy as the busiest "
        "shared coordinate; other coordinates lose a smaller share."
    )
