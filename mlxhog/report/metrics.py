"""Progress and result of a training run: what it reports while it trains and when it ends."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from statistics import median
from typing import Any

from mlxhog.config.config import EMULATED
from mlxhog.files.quantities import format_clock, format_share

# Bits per byte of simple models of the `sotu` corpus: what a number is worth.
# Source: measured on the whole text (4-gram fitted in sample is not shown: it saw the answer).
REFERENCE_BITS_PER_BYTE = {
    "uniform": 8.0,
    "unigram": 4.344,
    "bigram": 3.410,
    "gzip": 2.651,
    "xz": 1.844,
}

ANY_TEXT = {"uniform": 8.0}
"""What is true of every text."""


def kernels_used(kernels: Iterable[str]) -> str:
    """Name the forms of the model's operations that the workers of a run use, each once.

    >>> kernels_used(["metal", "native", "native"])
    'metal,native'
    """
    return ",".join(dict.fromkeys(kernels))


def is_emulated(gpu_write: str, kernels: str) -> bool:
    """Whether a run is a test of Metal source on the CPU: nothing it shows is true of a GPU."""
    return EMULATED in (gpu_write, kernels)


def label(gpu_write: str, kernels: str) -> str:
    """What every output says of a run with Metal kernels; nothing without any.

    >>> label("metal-emulated", "native")
    'gpu-write metal-emulated'
    """
    parts = (("gpu-write", gpu_write), ("kernels", kernels))
    return ", ".join(f"{name} {value}" for name, value in parts if "metal" in value)


class StepTimes:
    """Times of a worker's newest steps, in order, by what they went into."""

    PARTS = ("read_s", "compute_s", "apply_s", "wait_s")

    def __init__(self, most: int) -> None:
        """Keep so many steps."""
        self._parts: dict[str, deque[float]] = {
            name: deque(maxlen=most) for name in (*self.PARTS, "other_s")
        }
        self._last_ns: int | None = None
        self.steps = 0

    def take(self, t_ns: int, **parts: float) -> None:
        """Take in a step that ended at a time; what is left since the one before is `other_s`."""
        self.steps += 1
        for name in self.PARTS:
            self._parts[name].append(parts[name])
        if self._last_ns is not None:
            rest_s = (t_ns - self._last_ns) / 1e9 - sum(parts.values())
            self._parts["other_s"].append(max(0.0, rest_s))
        self._last_ns = t_ns

    def to_json(self) -> dict[str, Any]:
        """Microseconds of the gradients in order; of the other parts, the median in seconds."""
        parts = self._parts
        return {
            "steps": self.steps,
            "compute_us": [round(1e6 * s) for s in parts["compute_s"]],
            **{name: median(parts[name]) if parts[name] else 0.0 for name in parts
               if name != "compute_s"},
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """One worker: totals of this call to `train`, rates of late.

    Attributes:
        slot: its number in the worker table, from 1.
        backend: such as "torch:cpu".
        pid: process id of the newest process in its slot.
        state: free, starting, running, leaving, left, finished or dead.
        steps: batches it has finished, dropped ones included.
        tokens: tokens in them.
        tokens_per_s: of late.
        mean_staleness: updates by others between its reads and writes.
        max_staleness: the largest of them.
        dropped: steps left out because a gradient was not finite, or too late.
        memory_bytes: largest resident memory of its process so far.
        staleness: its steps by their staleness, see `Progress`.
        read_s: time its processes have spent reading parameters, in seconds.
        compute_s: ... computing gradients.
        apply_s: ... adding steps.
        wait_s: ... waiting for other workers or for locks.
        rate_share: its part of the sum of all step sizes, where these go by staleness or speed.
    """

    slot: int
    backend: str
    pid: int
    state: str
    steps: int
    tokens: int
    tokens_per_s: float
    mean_staleness: float
    max_staleness: int
    dropped: int
    memory_bytes: int
    staleness: Mapping[int, int] = field(default_factory=dict)
    read_s: float = 0.0
    compute_s: float = 0.0
    apply_s: float = 0.0
    wait_s: float = 0.0
    rate_share: float | None = None


class Activity(Enum):
    """What a run does beside training, as the user reads it."""

    STARTING = "starting workers"
    MEASURING = "measuring workers"
    FINISHING = "finishing the last steps"
    PAUSING = "pausing for a checkpoint"
    EVALUATING = "evaluating"
    SAMPLING = "sampling"
    SCORING = "scoring"


@dataclass(frozen=True)
class Doing:
    """An activity, and how much of it is done where that is known."""

    activity: Activity
    percent: int | None = None

    def __str__(self) -> str:
        """Spell it.

        >>> str(Doing(Activity.EVALUATING, 38))
        'evaluating 38 %'
        """
        words = self.activity.value
        return words if self.percent is None else f"{words} {self.percent} %"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a running run; None where nothing was measured yet.

    Attributes:
        step: steps of the whole run, dropped ones and those before a resume included.
        tokens: tokens in them.
        elapsed_s: seconds of training of the whole run.
        call_s: seconds of training of this call.
        budget_fraction: part of this call's budget used, 0 to 1.
        eta_s: seconds to the end of the budget.
        loss: mean training loss in nats per token, lately.
        train_bits_per_byte: the same per byte of text.
        val_bits_per_byte: of the newest held-out evaluation; all are of the same part of the text.
        val_loss: the same in nats per token.
        val_tokens: labels that it took.
        val_bytes: bytes of text that these stand for.
        val_share: how much of all held-out text the part is, up to 1.
        final_bits_per_byte: of more held-out text, at the end of training.
        final_share: how much of all held-out text that was, up to 1.
        tokens_per_s: of all workers together.
        lost_update_rate: part of the increments to the probe that got lost.
        memory_bytes: the workers' largest resident memory; shared pages count in each of them.
        workers: one report each.
        gpu_write: who adds steps of GPU workers: cpu, metal, or metal-emulated (Metal source that
            runs on the CPU adds the steps of all workers).
        kernels: forms of the model's operations that its workers use, see `kernels_used`.
        staleness: steps by their staleness, the updates by others between a step's read and write.
        sample: new text from the model, when there is some.
        message: something the user should read.
        doing: what goes on beside training.
        marks: bits per byte of simple models of the text, by their names.
    """

    step: int
    tokens: int
    elapsed_s: float
    budget_fraction: float
    eta_s: float | None
    loss: float | None
    train_bits_per_byte: float | None
    val_bits_per_byte: float | None
    tokens_per_s: float
    lost_update_rate: float | None
    memory_bytes: int
    workers: tuple[WorkerReport, ...]
    gpu_write: str = "cpu"
    kernels: str = "reference"
    staleness: Mapping[int, int] = field(default_factory=dict)
    sample: str | None = None
    message: str | None = None
    doing: Doing | None = None
    val_loss: float | None = None
    val_tokens: int | None = None
    val_bytes: int | None = None
    val_share: float | None = None
    final_bits_per_byte: float | None = None
    final_share: float | None = None
    marks: Mapping[str, float] = field(default_factory=lambda: ANY_TEXT)
    call_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types; `doing` as the user reads it."""
        return {**asdict(self), "doing": None if self.doing is None else str(self.doing)}


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended.

    Attributes:
        run: path of the run directory.
        status: "done", "interrupted", "diverged", or "unsaved": the last checkpoint could not be
            written.
        steps: steps of the whole run, dropped ones and those before a resume included.
        tokens: tokens in them.
        seconds: seconds of training of the whole run.
        tokens_per_s: tokens over seconds.
        val_bits_per_byte: of the last held-out evaluation, None without one; all evaluations are of
            the same part of the text.
        val_tokens: labels that it took.
        val_bytes: bytes of text that these stand for.
        val_share: how much of all held-out text the part is, up to 1; None without evaluations.
        val_text: name of the part; runs with the same name were scored on the same text.
        val_at_end: whether the evaluation is one after training, and not from before its end.
        val_of_completions: whether the held-out text is of examples, whose completions alone count.
        final_bits_per_byte: of more held-out text after training, as much as there was time for;
            None where there was none, and where evaluations are of all of the text.
        final_tokens: labels that it took.
        final_share: how much of all held-out text that was, up to 1.
        restarts: workers started again.
        dropped_steps: steps left out because a gradient was not finite, or too late.
        torn: batches whose worker died while adding its step.
        lost_update_rate: part of the increments to the probe that got lost.
        workers: one report each.
        gpu_write: see `Progress`, likewise `kernels`.
        kernels: see there.
        emulated_before: whether steps that this command went on from were emulated.
        checkpoint: path of the last checkpoint, None where none was saved.
        staleness: see `Progress`.
        sample: text from the model at the end, None where none was made.
        error: what went wrong, None where nothing did.
        start_s: seconds from the command's start until training began, with those in which workers
            were measured; None where it did not begin.
        network_bytes: bytes that a network would have carried for the whole run, were each worker a
            machine of its own.
        copies_bits_per_byte: avg_runs: held-out bits per byte of each worker's own parameters.
    """

    run: str
    status: str
    steps: int
    tokens: int
    seconds: float
    tokens_per_s: float
    val_bits_per_byte: float | None
    restarts: int
    dropped_steps: int
    torn: int
    lost_update_rate: float | None
    workers: tuple[WorkerReport, ...]
    checkpoint: str | None
    gpu_write: str = "cpu"
    kernels: str = "reference"
    emulated_before: bool = False
    staleness: Mapping[int, int] = field(default_factory=dict)
    sample: str | None = None
    error: str | None = None
    copies_bits_per_byte: tuple[float, ...] = ()
    network_bytes: int = 0
    val_tokens: int | None = None
    val_bytes: int | None = None
    val_share: float | None = None
    val_text: str | None = None
    val_at_end: bool = False
    val_of_completions: bool = False
    final_bits_per_byte: float | None = None
    final_tokens: int | None = None
    final_share: float | None = None
    start_s: float | None = None

    @property
    def emulated(self) -> bool:
        """Whether steps or operations of the model went through Metal source on the CPU."""
        return is_emulated(self.gpu_write, self.kernels) or self.emulated_before

    def to_json(self) -> dict[str, Any]:
        """Return what `train --json` prints last."""
        return {
            "run": self.run,
            "status": self.status,
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "val_bits_per_byte": self.val_bits_per_byte,
            "restarts": self.restarts,
            "dropped_steps": self.dropped_steps,
            "torn": self.torn,
            "lost_update_rate": self.lost_update_rate,
            "workers": [
                {
                    "backend": worker.backend,
                    "pid": worker.pid,
                    "steps": worker.steps,
                    "tokens": worker.tokens,
                    "mean_staleness": worker.mean_staleness,
                    **({} if (share := worker.rate_share) is None else {"rate_share": share}),
                }
                for worker in self.workers
            ],
            "network_bytes": self.network_bytes,
            "start_s": None if self.start_s is None else round(self.start_s, 3),
            "staleness": {str(tau): steps for tau, steps in self.staleness.items()},
            "gpu_write": self.gpu_write,
            "kernels": self.kernels,
            "emulated": self.emulated,
            "checkpoint": self.checkpoint,
            "error": self.error,
            "val_tokens": self.val_tokens,
            "val_bytes": self.val_bytes,
            "val_share": self.val_share,
            "val_text": self.val_text,
            "val_at_end": self.val_at_end,
            "val_of_completions": self.val_of_completions,
            "final_bits_per_byte": self.final_bits_per_byte,
            "final_tokens": self.final_tokens,
            "final_share": self.final_share,
            **(
                {"copies_bits_per_byte": list(copies)}
                if (copies := self.copies_bits_per_byte)
                else {}
            ),
        }


def number(value: float | None) -> str:
    """Spell a loss, or - where there is none yet."""
    return "-" if value is None else f"{value:.3f}"


def share_text(share: float) -> str:
    """Spell how much of a text it is.

    >>> share_text(1.0), share_text(0.076), share_text(0.0004)
    ('all of it', '8%', '0.04%')
    """
    if share >= 1:
        return "all of it"
    return f"{share:.0%}" if share >= 0.01 else f"{100 * share:.1g}%"


def rate(value: float | None) -> str:
    """Spell a part of one, or - where it was not measured."""
    return "-" if value is None else format_share(value)


def clock(progress: Progress) -> str:
    """Spell how long this call has trained, and the share of its budget: with `eta` its whole."""
    return f"{format_clock(progress.call_s)} ({progress.budget_fraction:.0%})"


def eta(progress: Progress) -> str:
    """Spell the time that is left, or -."""
    return "-" if progress.eta_s is None else format_clock(math.ceil(progress.eta_s - 1e-6))
