"""The result of a run of a classic problem: as records and JSON, and as a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mlxhog.base.quantities import format_count
from mlxhog.display.table import AnswerNote, FailureNote, Section
from mlxhog.research.classic.problem import Float32


@dataclass(frozen=True)
class Epoch:
    """One epoch over the examples."""

    number: int  # from 1
    lr: float  # its learning rate gamma
    seconds: float  # from the first worker's begin to the last one's end, with cyclades' search
    native_s: float  # inside the native loops, summed over workers
    examples: int  # that were done
    measures: dict[str, float]  # "objective" and the problem's other measures, after the epoch

    @property
    def objective(self) -> float:
        """Objective after the epoch; NaN or infinite if it diverged."""
        return self.measures["objective"]


@dataclass(frozen=True, kw_only=True)
class ClassicProgress:
    """The progress of a run; an observer receives it many times a second.

    An observer may raise KeyboardInterrupt to end the run; its current epoch is not measured.
    """

    strategy: str
    epochs: int  # their number
    examples: int  # in an epoch
    epoch: Epoch | None = None  # the last measured epoch; None before the first one
    done: int = 0  # examples of the current epoch
    message: str | None = None  # for the user; shown once


@dataclass(frozen=True)
class ClassicResult:
    """One run."""

    problem: str
    strategy: str
    write: str  # "racy", "lossless" or "hot-cold"; "" if the strategy has one way to write
    workers: int
    status: str  # "done", "diverged" or "interrupted"
    start_s: float  # from spawning the workers until all have mapped the arena; in no other number
    initial: dict[str, float]  # measures before the first epoch
    epochs: tuple[Epoch, ...]  # in order
    lost_updates: int = 0  # increments of the probe that were lost; see `run.py`
    probe_updates: int = 0  # increments of the probe; 0 if lost updates were not counted
    advice: str = ""  # the learning rate to try if the run diverged, else ""
    params: Mapping[str, Float32] = field(default_factory=dict)  # copies of those at the end

    @property
    def seconds(self) -> float:
        """Seconds of all epochs together."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def examples_per_s(self) -> float:
        """Examples per second of all epochs together; 0 before the first one."""
        examples = sum(epoch.examples for epoch in self.epochs)
        return examples / self.seconds if self.seconds > 0 else 0.0

    @property
    def measures(self) -> dict[str, float]:
        """Measures at the end."""
        return self.epochs[-1].measures if self.epochs else self.initial

    @property
    def objective(self) -> float:
        """Objective at the end; NaN or infinite if it diverged."""
        return self.measures["objective"]

    def speedup(self, serial: "ClassicResult") -> float | None:
        """Examples per second, divided by those of the serial reference; None of itself."""
        if serial is self or not serial.examples_per_s:
            return None
        return self.examples_per_s / serial.examples_per_s

    def to_json(self, serial: "ClassicResult") -> dict[str, Any]:
        """One JSON object, with the serial reference; the numbers that users look for come last."""
        rows = [asdict(epoch) for epoch in self.epochs]
        names = ("status", "write", "start_s", "measures", "advice", "probe_updates")
        last = ("problem", "strategy", "workers", "seconds", "examples_per_s", "objective")
        return {
            **{name: getattr(self, name) for name in names},
            "native_s": sum(row["native_s"] for row in rows),
            "examples": sum(row["examples"] for row in rows),
            "serial_measures": serial.measures,
            "speedup": self.speedup(serial),
            "epochs": [{"epoch": row.pop("number"), **row, **row.pop("measures")} for row in rows],
            **{name: getattr(self, name) for name in last},
            "serial_objective": serial.objective,
            "lost_updates": self.lost_updates,
        }


def sections(
    about: str,
    result: ClassicResult,
    serial: ClassicResult,
    notes: Sequence[str],
    *,
    everything: bool,
) -> list[Section]:
    """The answer, and the numbers of a run beside those of the serial reference.

    `everything` shows all numbers; else objective, errors and speed.
    """
    runs = [result] if serial is result else [serial, result]
    names = [name for name in result.measures if everything or not name.endswith("_loss")]
    rows = [(name.replace("_", " "), *(f"{run.measures[name]:.6g}" for run in runs))
            for name in names]  # fmt: skip
    if everything:
        rows.append(("epochs", *(str(len(run.epochs)) for run in runs)))
        rows.append(("start-up, seconds", *(f"{run.start_s:.2f}" for run in runs)))
    rows.append(("seconds", *(f"{run.seconds:.3f}" for run in runs)))
    rows.append(("examples/s", *(format_count(run.examples_per_s) for run in runs)))
    lost = (f"{r.lost_updates:,} of {r.probe_updates:,}" if r.probe_updates else "-" for r in runs)
    rows.append(("lost updates", *lost))
    title, header = f"{result.problem}: {about}", ("", *map(_label, runs))
    answer = Section("", notes=[_answer(result, serial)])
    return [answer, Section(title, header, rows, ["", *notes] if notes else ())]


def _answer(result: ClassicResult, serial: ClassicResult) -> str:
    who, n_epochs = _label(result), len(result.epochs)
    if result.status == "diverged":
        return FailureNote(f"{who}: diverged in epoch {n_epochs}")
    speedup = result.speedup(serial)
    if speedup is None or n_epochs < len(serial.epochs) or not serial.objective:
        ended = "interrupted after" if result.status == "interrupted" else "after"
        return AnswerNote(f"{who}: objective {result.objective:.5g} {ended} {n_epochs} epochs")
    apart = "serial's objective"
    if result.objective != serial.objective:
        apart = f"objective {result.objective / serial.objective - 1:+.2%} from serial's"
    return AnswerNote(f"{who}: {apart}, {speedup:.2f} x its speed")


def _label(run: ClassicResult) -> str:
    write = f" {run.write}" if run.write else ""
    return f"{run.strategy}{write}, {run.workers} worker{'s' * (run.workers > 1)}"


BUSY = 0.3  # load average per core above which speeds are not meaningful


def warnings(result: ClassicResult, load: float, cores: int) -> Iterator[str]:
    """Yield why the numbers of a run are not what they could be, at a load of a machine."""
    if result.epochs and result.objective > result.initial["objective"]:
        yield (
            f"The objective rose from {result.initial['objective']:.4g}: the learning rate is too "
            f"large; try --lr {result.epochs[0].lr / 10:g}."
        )
    if result.workers > cores or load > BUSY * cores:
        yield (
            f"The speeds are not meaningful: {result.workers} workers, and a load of {load:.1f} "
            f"before, on {cores} core{'s' * (cores > 1)}."
        )
