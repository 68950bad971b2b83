"""Progress and result of a training run: what its processes report and what every view shows."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any, Self

from mlxhog.base.quantities import format_count, format_duration
from mlxhog.config.train_options import EMULATED

NGRAM, BASE = "n-gram", "base model"
"""Baselines of a run: n-grams of its training text, and the model that fine-tuning starts from."""

ANY_TEXT = {"uniform": 8.0}
"""Bits per byte of simple models on every text."""


def is_emulated(gpu_write: str, kernels: str) -> bool:
    """Whether a run tests Metal source on the CPU, so that its numbers do not apply to a GPU."""
    return EMULATED in (gpu_write, kernels)


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """One worker: totals of this call to `train`, and recent rates."""

    slot: int = 0  # its number in the worker table, from 1
    backend: str = "?"  # such as "torch:cpu"
    pid: int = 0  # of the newest process in its slot
    state: str = "?"  # free, starting, running, leaving, left, finished or dead
    steps: int = 0  # batches that it has finished, including dropped ones
    tokens: int = 0  # in them
    tokens_per_s: float = 0.0  # recent rate
    mean_staleness: float = 0.0  # of the updates by others between its reads and writes
    max_staleness: int = 0
    dropped: int = 0  # updates skipped as not finite, or dropped as too stale
    memory_bytes: int = 0  # largest resident memory of its process so far
    staleness: Mapping[int, int] = field(default_factory=dict)  # its steps by their staleness
    read_s: float = 0.0  # seconds of its processes by activity; see `shares`
    compute_s: float = 0.0
    apply_s: float = 0.0
    wait_s: float = 0.0
    forward_s: float = 0.0  # of `compute_s`; 0 where they are not timed apart
    optimizer_s: float = 0.0  # of `apply_s`, in which gradients became steps
    other_s: float = 0.0
    rate_share: float | None = (
        None  # of the sum of all learning rates, if these depend on the worker
    )


IN_QUORUM, ALONE, AWAY = "in the quorum", "alone", "away"


@dataclass(frozen=True, kw_only=True)
class MachineReport:
    """One machine of a cluster."""

    name: str  # of equal names the later ones have a number
    state: str  # `IN_QUORUM` of the newest round, `ALONE` (this machine) or `AWAY`
    tokens: int  # of its committed rounds
    rounds: int  # that it has committed
    seen_s: float  # seconds since its last join
    is_own: bool  # whether it is the machine of this run

    def __str__(self) -> str:
        """Spell it, such as "in the quorum, 1.20M tokens in 40 rounds, seen 3 s ago"."""
        return (
            f"{self.state}, {format_count(self.tokens)} tokens in {self.rounds} rounds, seen "
            f"{format_duration(self.seen_s)} ago"
        )


class Phase(Enum):
    """An activity of a run besides training, in the words that users see."""

    STARTING = "starting workers"
    FINISHING = "finishing the last steps"
    PAUSING = "pausing for a checkpoint"
    CHANGING = "changing the strategy"
    EVALUATING = "evaluating"
    SAMPLING = "sampling"
    SCORING = "scoring"


@dataclass(frozen=True)
class PhaseStatus:
    """An activity, and the percentage done if it is known."""

    activity: Phase
    percent: int | None = None

    def __str__(self) -> str:
        """Spell the activity.

        >>> str(PhaseStatus(Phase.EVALUATING, 38))
        'evaluating 38 %'
        """
        words = self.activity.value
        return words if self.percent is None else f"{words} {self.percent} %"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of validation text; None before there is one.

    All evaluations during training score the same part of the text. In metrics.jsonl the numbers of
    an evaluation stand on one line.
    """

    val_bits_per_byte: float | None = None
    val_step: int | None = None  # of the whole run, whose parameters were scored
    val_loss: float | None = None  # nats per token
    val_tokens: int | None = None  # number of labels
    val_bytes: int | None = None  # of text, of these labels
    val_share: float | None = None  # of the part in all validation text, up to 1
    final_bits_per_byte: float | None = None  # of more text, as much as time allowed at the end
    final_tokens: int | None = None
    final_share: float | None = None


EVALUATED = tuple(one.name for one in fields(Evaluation) if one.name != "val_share")
"""Fields that an evaluation sets; metrics.jsonl has each evaluation once."""


@dataclass(frozen=True, kw_only=True)
class RunTotals(Evaluation):
    """Totals that the progress and the result of a run share; None is not measured."""

    tokens: int = 0  # in all steps of the whole run
    workers: tuple[WorkerReport, ...] = ()
    lost_update_rate: float | None = None  # share of the increments to the probe that were lost
    gpu_write: str = "cpu"  # or metal, or metal-emulated: its source adds all steps on the CPU
    kernels: str = "eager"  # forms of the model's operators, such as "metal,native"
    staleness: Mapping[int, int] = field(default_factory=dict)  # steps by their staleness
    sample: str | None = None  # newest text of the model
    first_step_s: float | None = None  # from the start of the command to the end of its first step
    machines: tuple[MachineReport, ...] = ()  # of the run's cluster


@dataclass(frozen=True, kw_only=True)
class Progress(RunTotals):
    """The state of a run, with its newest evaluation; a field is None until it is measured."""

    step: int = 0  # of the whole run, including dropped ones and those before a resume
    epoch: float | None = None  # how often the training text was read, such as 2.4
    best_bits_per_byte: float | None = None  # of the best evaluation so far
    best_step: int | None = None  # that it scored
    elapsed_s: float = 0.0  # of training of the whole run
    budget_fraction: float = 0.0  # used share of this command's budget, 0 to 1
    eta_s: float | None = None  # to the end of the budget
    loss: float | None = None  # recent mean training loss in nats per token
    train_bits_per_byte: float | None = None
    lr: float | None = None  # learning rate of the next update
    tokens_per_s: float = 0.0  # of all workers together
    memory_bytes: int = 0  # sum over workers, in each of which shared pages count
    strategy: str | None = None  # in use now
    message: str | None = None  # for the user
    phase: PhaseStatus | None = None
    baselines: Mapping[str, float] = field(default_factory=lambda: ANY_TEXT)
    """Bits per byte of simple models of the text, by their names."""
    call_s: float = 0.0  # of training of this command

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types; `phase` as text."""
        phase = None if self.phase is None else str(self.phase)
        return {**asdict(replace(self, phase=None)), "phase": phase}


@dataclass(frozen=True, kw_only=True)
class Result(RunTotals):
    """The result of a run, with its last evaluation."""

    run: str  # path of its folder
    status: str  # "done", "interrupted", "diverged", or "unsaved": without its last checkpoint
    steps: int  # of the whole run, including dropped ones and those before a resume
    seconds: float  # of training of the whole run
    tokens_per_s: float
    restarts: int  # of workers
    dropped_steps: int  # whose gradient was not finite, or too late
    torn: int  # batches whose worker died while adding its step
    checkpoint: str | None  # path of the last one
    newest_checkpoint: str | None = None  # of the run on the disk, perhaps of an earlier step
    emulated_before: bool = False  # whether steps of earlier commands were emulated
    error: str | None = None
    copies_bits_per_byte: tuple[float, ...] = ()  # avg_runs: of each worker's own parameters
    network_bytes: int = 0  # that a network would carry, were each worker on its own machine
    val_text: str | None = None  # name of the part, equal for runs of equal validation text
    val_of_completions: bool = False  # whether only completions of examples count in it
    start_s: float | None = None  # from the start of the command until training began
    ngram_bits_per_byte: float | None = None  # of `NGRAM`, on the text of `val_bits_per_byte`
    base_bits_per_byte: float | None = None  # of `BASE`, on the same text

    @classmethod
    def of(cls, progress: Progress, **more: Any) -> Self:
        """Return the result at the last progress, with what that does not say."""
        shared = {one.name: getattr(progress, one.name) for one in fields(RunTotals)}
        seconds = progress.elapsed_s
        return cls(
            **shared,
            steps=progress.step,
            seconds=seconds,
            tokens_per_s=progress.tokens / seconds if seconds else 0.0,
            dropped_steps=sum(worker.dropped for worker in progress.workers),
            ngram_bits_per_byte=progress.baselines.get(NGRAM),
            base_bits_per_byte=progress.baselines.get(BASE),
            **more,
        )

    @property
    def val_at_end(self) -> bool:
        """Whether the evaluation scored the model after the last step."""
        return self.val_step == self.steps

    @property
    def emulated(self) -> bool:
        """Whether steps or operations of the model used Metal source on the CPU."""
        return is_emulated(self.gpu_write, self.kernels) or self.emulated_before

    def to_json(self) -> dict[str, Any]:
        """Return the last object that `train --json` prints: the fields, and `shares` of a step."""
        record = {**asdict(self), "val_at_end": self.val_at_end, "emulated": self.emulated}
        for name in ("seconds", "start_s", "first_step_s", "tokens_per_s"):
            record[name] = record[name] and round(record[name], 3)
        for worker in record["workers"]:
            worker["shares"] = shares([worker])
        return record | {"shares": shares(record["workers"])}


TIMES = ("read", "compute", "apply", "wait", "forward", "optimizer", "other")
"""Times of a worker in its report, which has them with the ending `_s`."""


PARTS = ("forward", "backward", "gradient", "optimizer", "read", "write", "wait", "other")
"""The time breakdown of a step, from the seconds in the reports of workers.

    part       activity of a worker
    forward    the forward pass of a gradient
    backward   the rest of the gradient: backward pass, sum over micro-batches
    gradient   both, where they are one graph that is computed at once (on a GPU)
    optimizer  the update, from the gradient; with AdamW and momentum also its write
    read       copies of the parameters
    write      the rest of a write: norm, applying the update, averaging of gradients
    wait       idle: waiting for other workers, locks, a checkpoint or new data
    other      the step's ticket, batch and record

Evaluations, samples and the time before the first step and after the last one are no part of steps.
"""

GRADIENT = PARTS[:3]
"""Parts of a gradient: a worker has the first two, or the last."""


def shares(workers: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of the parts in all steps of some workers, in the order of `PARTS`; their sum is 1.

    The workers are fields of their reports. Parts of a gradient that no worker has are left out;
    before the first step there are none.
    """
    totals = dict.fromkeys(PARTS, 0.0)
    for worker in workers:
        spent_s = {name: worker.get(f"{name}_s", 0.0) for name in TIMES}
        compute_s, apply_s = spent_s.pop("compute"), spent_s.pop("apply")
        spent_s["backward" if spent_s["forward"] else "gradient"] = compute_s - spent_s["forward"]
        spent_s["write"] = apply_s - spent_s["optimizer"]
        for name, spent in spent_s.items():
            totals[name] += max(0.0, spent)
    whole_s = sum(totals.values())
    return {
        name: round(spent / whole_s, 4)
        for name, spent in totals.items()
        if whole_s and (spent or name not in GRADIENT)
    }
