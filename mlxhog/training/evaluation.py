"""Evaluations of held-out text and samples: during training, and by all workers at the end.

All evaluations of a run score the same part of the held-out text (`data.subset`), and
`held-out bits per byte` always refers to that part. An evaluation that does not score all of it
does not count. At the end workers score a larger part, too, whose score is a separate number. Both
sizes follow from the options alone, whatever the budget.

The supervisor begins one evaluation at a time: a round, whose batches are scored at one state of
the parameters. Each scored batch is a record in the worker's ring. During training one worker takes
on the request and scores all batches, at its copy of the parameters; other workers continue. At the
end all workers share the batches (the counter `eval_next`). If one dies there, a new round begins
at the first batch without a score.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlxhog.arena.control import EVAL_ROUND, Command, RecordKind, Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Backend
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import EMULATED, TrainConfig
from mlxhog.data import heldout, subset
from mlxhog.data.prepare import Prepared
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError, EnvironmentLacks, WorkerFailed
from mlxhog.models.families import param_count
from mlxhog.report.metrics import Activity, Doing
from mlxhog.report.views import Tell
from mlxhog.strategies.context import Context
from mlxhog.training.job import Job

if TYPE_CHECKING:  # which workers need not import
    from mlxhog.report.monitor import Monitor
    from mlxhog.training.origin import Resumption
    from mlxhog.training.run import Training

PART_FLOPS, LARGER_FLOPS = 1e12, 2e12
"""Most work to score the part and the larger text: 10 s and 20 s of two CPU cores."""
EMULATED_SHARE = 0.01  # of these, for emulated models, which are slow
LARGER_TOKENS = 2_000_000
LEAST_BYTES = 1024
EVALUATING_PART = 0.05  # largest part of the workers' time for evaluations at an interval of time
INTERRUPTED_S = 5.0  # limit of the evaluation after an interrupt
SAMPLE_S = 10.0  # limit of the last sample
SAMPLE_PROMPT = "The"
SAMPLE_TOKENS = 160
GAVE_UP_WORKER = (ConfigError, EnvironmentLacks, WorkerFailed)
"""Errors of a worker that is not replaced; the others continue."""


class Score(NamedTuple):
    """Sums over a piece of held-out text: nats of its labels, bytes of text, labels."""

    nats: float
    n_bytes: int
    tokens: int


# -- the text ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOutPart:
    """The part of the held-out text that all evaluations of a run score, as run.json has it.

    Attributes:
        asked_bytes: its size, as `subset.of` takes it.
        text: its name; scores of the same text have the same name, see `subset.name`.
        n_bytes: bytes of text in it, prompts of examples included.
        share: its part of all held-out text, up to 1.
        batches: number of its batches.
        all_batches: with those of the larger final score.
        larger_share: part of all held-out text in the larger final score; 0 without it.
        tokens: number of its tokens.
        seen: a note if earlier runs, whose weights the run began with, trained on some of it.
    """

    asked_bytes: int
    text: str
    n_bytes: int
    share: float
    batches: int
    all_batches: int
    larger_share: float
    tokens: int
    seen: str = ""

    @classmethod
    def of(
        cls, data: Prepared, config: TrainConfig, parameters: int, asked_bytes: int | None = None
    ) -> HeldOutPart:
        """Choose the part, or take the size that a resumed run had before."""
        file = TokenFile.open(data.val)
        if asked_bytes is None or config.eval_tokens is not None:
            asked_bytes = choose_bytes(config, parameters, file)
        texts = HeldOutTexts(file, config, parameters, asked_bytes)
        part, larger, whole = texts.part, texts.larger, file.header["bytes"]
        return cls(
            asked_bytes=asked_bytes,
            text=subset.name(data.corpus_sha256, data.rule, None if part is file else asked_bytes),
            n_bytes=part.header["bytes"],
            share=part.header["bytes"] / whole,
            batches=texts.n_batches(part),
            all_batches=texts.n_batches(part) + texts.n_batches(larger),
            larger_share=0.0 if larger is None else larger.header["bytes"] / whole,
            tokens=part.n_tokens,
        )


def choose_bytes(config: TrainConfig, parameters: int, file: TokenFile) -> int:
    """Return the size of the part that a new run is evaluated on, by default `subset.BYTES`.

    `eval_tokens` sets another size. For a large model it is halved until scoring takes at most
    `PART_FLOPS`, or to `LEAST_BYTES`.

    Args:
        config: of the run.
        parameters: numbers in the model.
        file: all of the held-out text.
    """
    if config.eval_tokens is not None:
        labels, text_bytes = file.n_tokens - file.header["documents"], int(file.header["bytes"])
        return max(1, round(config.eval_tokens * text_bytes / max(int(labels), 1)))
    n_bytes, most = subset.BYTES, _most_tokens(PART_FLOPS, config, parameters)
    while n_bytes > LEAST_BYTES and n_bytes > most:
        n_bytes //= 2
    return n_bytes


def _most_tokens(flops: float, config: TrainConfig, parameters: int) -> int:
    """Tokens that some work scores, at two operations per parameter and token."""
    return int(flops * (EMULATED_SHARE if config.kernels == EMULATED else 1.0) / (2 * parameters))


class HeldOutTexts:
    """The text of the last evaluation, batch by batch: the part of all evaluations, then more."""

    def __init__(
        self, file: TokenFile, config: TrainConfig, parameters: int, asked_bytes: int
    ) -> None:
        """Find the part in all of the held-out text; the model's size decides on the batches."""
        self._file, self._seq_len = file, config.seq_len
        self._rows = heldout.rows_of_batch(parameters, config.seq_len)
        self.part = subset.of(file, asked_bytes)
        tokens = min(_most_tokens(LARGER_FLOPS, config, parameters), LARGER_TOKENS)
        most = tokens * file.header["bytes"] // file.n_tokens
        self._larger_bytes = 0 if self.part is file or most <= asked_bytes else most

    @cached_property
    def larger(self) -> TokenFile | None:
        """All held-out text, or as much as `LARGER_FLOPS` score; None if the part is as large.

        Opening it copies its tokens, so it is opened on first use.
        """
        return subset.of(self._file, self._larger_bytes) if self._larger_bytes else None

    def n_batches(self, file: TokenFile | None) -> int:
        """Number of batches of the part, or of the larger text."""
        if file is None:
            return 0
        return heldout.n_batches(file, seq_len=self._seq_len, batch_size=self._rows)

    def score(self, backend: Backend, place: int) -> Score:
        """Score the batch at a place, at the parameters in the backend's inbox."""
        file, n = self.part, self.n_batches(self.part)
        if place >= n and self.larger is not None:
            file, place = self.larger, place - n
        (batch,) = heldout.batches(
            file, seq_len=self._seq_len, batch_size=self._rows, first=place, count=1
        )
        result = backend.evaluate(batch)
        return Score(result.nats, batch.n_bytes, result.targets)


# -- in a worker ---------------------------------------------------------------------------------


def takes_on(context: Context, what: str) -> bool:
    """Take on a request of the supervisor; False if none is open. At most one worker gets each.

    Args:
        context: of this worker.
        what: the request, "eval" or "sample".
    """
    counters, taken = context.arena.counters, f"{what}_taken"
    n = counters.load(taken)
    if not (counters.load(f"{what}_asked") > n and counters.compare_exchange(taken, n, n + 1)):
        return False
    context.settle()  # a worker with a request holds no ticket (`Session.holding_still`)
    return True


class TextJobs:
    """Evaluations and samples; one worker takes on each request.

    During training both end with the training; after it, when the supervisor says so.
    """

    def __init__(
        self,
        val: Path,
        tokenizer: Tokenizer,
        asked_bytes: int,
        job: Job,
        context: Context,
        ring: Ring,
    ) -> None:
        """Open the held-out text, of which evaluations score a part of `asked_bytes`."""
        self.job, self.context, self.ring, self._tokenizer = job, context, ring, tokenizer
        parameters = param_count(job.plan.model)
        self._texts = HeldOutTexts(TokenFile.open(val), job.config, parameters, asked_bytes)
        self._counters, self._ended_round = context.arena.counters, 0

    def serve(self) -> None:
        """Evaluate or write a sample on request.

        It evaluates only during training: all workers share the last evaluation (`evaluate_rest`).
        """
        if self.context.training() and takes_on(self.context, "eval"):
            begin = self._counters.load("eval_next")
            self._score(range(begin, begin + self._counters.load("eval_end")))
        if takes_on(self.context, "sample"):
            self._sample()

    def evaluate_rest(self) -> None:
        """Score batches of the held-out text until the round is complete or its time is over."""
        if self._counters.load("eval_next") // EVAL_ROUND != self._ended_round:
            self._score(self._free_batches())

    def _free_batches(self) -> Iterator[int]:
        counters = self._counters
        while (number := counters.add("eval_next", 1)) % EVAL_ROUND < counters.load("eval_end"):
            yield number
        self._ended_round = number // EVAL_ROUND

    def _score(self, numbers: Iterable[int]) -> None:
        """Score batches, given as the values of `eval_next` at which they were taken."""
        context, entry, copied_round, numbers = self.context, self.context.entry, -1, iter(numbers)
        while not self._is_over() and (number := next(numbers, None)) is not None:
            began_ns, (round_, place) = monotonic_ns(), divmod(number, EVAL_ROUND)
            if copied_round != round_:  # another round may score other parameters
                steps, copied_round = self._counters.load("steps"), round_
                context.copy_to_inbox()
            entry.beat(Phase.EVALUATE)
            score = self._texts.score(context.backend, place)
            self.ring.append(
                kind=RecordKind.EVALUATION,
                worker=self.job.slot,
                version=number,
                staleness=steps,
                t_ns=monotonic_ns(),
                nats=score.nats,
                n_bytes=score.n_bytes,
                tokens=score.tokens,
                compute_s=(monotonic_ns() - began_ns) / 1e9,
            )

    def _is_over(self) -> bool:
        """Whether a side job has to end; also a sign of life."""
        context, counters = self.context, self._counters
        context.entry.beat()
        if context.training():
            return context.used_up()
        until_ns = counters.load("side_until_ns")
        is_asked_for = counters.load("command") in (Command.EVALUATE, Command.SAMPLE)
        return not is_asked_for or bool(until_ns and monotonic_ns() >= until_ns)

    def _sample(self) -> None:
        """Write a sample of text, as long as time allows."""
        from mlxhog.decoding.generate import answer
        from mlxhog.decoding.options import Sampling

        self.context.copy_to_inbox()
        self.context.entry.beat(Phase.SAMPLE)
        texts = [SAMPLE_PROMPT]
        for piece in answer(
            self.context.backend,
            [self._tokenizer.encode(SAMPLE_PROMPT.encode())],
            tokenizer=self._tokenizer,
            sampling=Sampling(max_new_tokens=SAMPLE_TOKENS, seed=self.job.config.seed),
        ):
            texts.append(piece.text)
            if self._is_over():
                break
        with contextlib.suppress(EnvironmentLacks):  # a full disk costs a sample, not a worker
            Run(self.job.run_dir).append_sample("".join(texts))
        self.ring.append(kind=RecordKind.SAMPLE, worker=self.job.slot, t_ns=monotonic_ns())


# -- in the supervisor ---------------------------------------------------------------------------


class Evaluations:
    """The evaluations of a run, one after the other; the monitor gets their scores.

    Attributes:
        copies_bits_per_byte: of each worker's own parameters, where the model is their average.
    """

    def __init__(self, run: Training) -> None:
        """Prepare; this starts no evaluation."""
        self.copies_bits_per_byte: list[float] = []
        self._run, self._part, self._counters = run, run.plan.held_out, run.arena.counters
        self._scores: dict[int, Score] = {}  # of the batches of the present evaluation, by place
        self._round = self._first = self._end = self._interrupts = 0
        self._during = False  # training
        self._asked_at: tuple[int, int] | None = None
        run.monitor.on_score = self._take

    def _begin(self, end: int, *, during: bool = False) -> None:
        """Begin to score batches up to `end` with the present parameters."""
        self._scores, self._end, self._during = {}, end, during
        self._begin_round()
        self._first = self._round

    def _begin_round(self) -> None:
        """Let workers score the batches from the first one without a score on."""
        self._round += 1
        place = next((k for k in range(self._end) if k not in self._scores), self._end)
        self._counters.store("eval_end", self._end)
        self._counters.store("eval_next", self._round * EVAL_ROUND + place)

    def _take(self, record: Any) -> None:
        """Take in the score of a batch, from a worker's record."""
        round_, place = divmod(int(record["version"]), EVAL_ROUND)
        if round_ < self._first:
            return  # of an evaluation before the present one
        self._scores[place] = Score(
            float(record["nats"]), int(record["n_bytes"]), int(record["tokens"])
        )
        if self._during:
            self._run.monitor.evaluating_s += float(record["compute_s"])
            if self._share() == 1.0:
                steps_before = self._run.monitor.budget.steps_before
                self._tell_monitor(steps_before + int(record["staleness"]))
                self._run.monitor.evaluations += 1

    def _total(self, begin: int, end: int) -> Score | None:
        """The score of the batches from `begin` to `end`; None while not all have one."""
        scores = [self._scores[k] for k in range(begin, end) if k in self._scores]
        if len(scores) < end - begin or not scores:
            return None
        nats, n_bytes, tokens = (np.array(column) for column in zip(*scores, strict=True))
        return Score(float(nats.sum()), int(n_bytes.sum()), int(tokens.sum()))

    def _share(self) -> float:
        return len(self._scores) / self._end

    def _tell_monitor(self, step: int) -> Score | None:
        """Pass on the score of the fixed part; None if it has none."""
        score = self._total(0, self._part.batches)
        if score is None or not score.n_bytes:
            return None  # a score of less text is not comparable with earlier ones
        self._run.monitor.take_evaluation(score.nats, score.n_bytes, score.tokens, step)
        return score

    def ask_for_next(self) -> None:
        """Let a worker evaluate if the last evaluation is over, and they do not take too much time.

        One is over, too, if a worker has ended, since that may have been its worker.
        """
        run, monitor = self._run, self._run.monitor
        now = (monitor.evaluations, run.ends())
        most_s = EVALUATING_PART * run.strategy.workers * monitor.seconds()
        if run.plan.config.eval_every.seconds is None:
            most_s = math.inf
        if now != self._asked_at and monitor.evaluating_s <= most_s:
            self._asked_at = now
            self._begin(self._part.batches, during=True)
            run.ask("eval")

    def begin_last(self) -> None:
        """Let all workers score the held-out text with the final model.

        They score the fixed part alone after an interrupt, for a few seconds, and if workers have
        parameters of their own, which are scored next.
        """
        self._run.drain()  # first an evaluation that ended together with the training
        alone = self._run.interrupts() or self._run.strategy.own_copies()
        self._begin_with_all(self._part.batches if alone else self._part.all_batches)

    def _begin_with_all(self, end: int) -> None:
        self._interrupts = self._run.interrupts()
        until_ns = monotonic_ns() + int(INTERRUPTED_S * 1e9) if self._interrupts else 0
        self._counters.store("side_until_ns", until_ns)
        self._begin(end)
        self._run.command(Command.EVALUATE)

    def _wait(self) -> None:
        """Wait until every batch is scored, or the user interrupts.

        Raises:
            ConfigError, EnvironmentLacks, WorkerFailed: see `Session.poll`; the fixed part cannot
                be scored without a worker that failed.
        """
        run, limit_s = self._run, INTERRUPTED_S if self._interrupts else math.inf

        def look(ends: int) -> Callable[[], bool]:
            return lambda: self._share() == 1.0 or run.ends() > ends

        def doing() -> Doing:
            return Doing(Activity.EVALUATING, round(100 * self._share()))

        try:
            while run.pool and self._share() < 1.0 and not self._is_interrupted():
                if not run.until(look(run.ends()), doing, limit_s):
                    break
                if self._share() < 1.0:  # a worker has died
                    self._begin_round()
        except GAVE_UP_WORKER as error:
            if self._total(0, self._part.batches) is None:
                raise
            run.report(f"the larger held-out score is left out: {error}")

    def _is_interrupted(self) -> bool:
        return self._run.interrupts() > self._interrupts

    def finish(self) -> None:
        """Wait for the score of the model, and score the copies that it is the average of."""
        run, monitor, part = self._run, self._run.monitor, self._part
        self._wait()
        if self._total(0, part.batches) is None and self._is_interrupted():
            self.begin_last()
            self._wait()
        score = self._tell_monitor(monitor.totals()[0])
        if score is None:
            return
        larger = self._total(part.batches, part.all_batches)
        if larger is not None and larger.n_bytes:
            bits = heldout.bits_per_byte(larger.nats, larger.n_bytes)
            monitor.take_final(bits, larger.tokens, part.larger_share)
        if not run.interrupts() and self._score_copies():
            average = heldout.bits_per_byte(score.nats, score.n_bytes)
            if warning := run.strategy.warning(average, self.copies_bits_per_byte):
                run.report(warning)

    def _score_copies(self) -> bool:
        """Score each worker's own parameters if the model is their average; whether all are."""
        run = self._run
        with run.strategy.each_copy(run.arena) as copies:
            for load in copies:
                run.until(run.resting, Doing(Activity.EVALUATING))
                if run.interrupts():
                    return False
                load()
                self._begin_with_all(self._part.batches)
                self._wait()
                if (score := self._total(0, self._part.batches)) is None:
                    return False
                bits = heldout.bits_per_byte(score.nats, score.n_bytes)
                self.copies_bits_per_byte.append(bits)
        return True


class HeldOutWatch:
    """The best evaluation during training, and early stopping.

    A checkpoint stores the best, so a resumed run continues the count, with full patience, unless
    it scores another part. The best weights are saved right after their evaluation. Lock-free
    workers continue while one evaluates, so the saved model is the evaluated one plus the steps
    since.

    Attributes:
        best: bits per byte and step of the best so far; None before the first.
        since: evaluations after it.
        ended: reason for an end of training before its budget; None otherwise.
    """

    def __init__(self, config: TrainConfig, resumption: Resumption | None, text: str) -> None:
        """Begin, or continue from a checkpoint.

        Args:
            config: says what ends the run, and if the best is kept.
            resumption: the resumed run; None for a new one.
            text: name of the part that is scored.
        """
        self._config, self._text = config, text
        self.best: tuple[float, int] | None = None
        self.since = self._evaluations = 0
        self.ended: str | None = None
        best = None if resumption is None else resumption.state["best"]
        if isinstance(best, Mapping) and best.get("text") == text:
            self.best = best["bits_per_byte"], int(best["step"])

    def look(self, monitor: Monitor, save: Callable[[], bool], report: Tell) -> bool:
        """Take in a new evaluation, if any; returns whether training is to end.

        If the weights of a new best cannot be saved, the best before it stays the best, so the next
        better evaluation is saved.
        """
        bits, step = monitor.evaluation.val_bits_per_byte, monitor.evaluation.val_step
        if monitor.evaluations == self._evaluations or bits is None or step is None:
            return False
        self._evaluations, config = monitor.evaluations, self._config
        before = best = self.best
        if best is None or bits < best[0]:
            self.best = best = bits, step
            self.since = 0
            if config.keeps_best and not save():  # the checkpoint names it
                self.best = before
        else:
            self.since += 1
        if config.stop_at_loss is not None and best[0] <= config.stop_at_loss:
            self.ended = (
                f"held-out text reached {best[0]:.3f} bits per byte at step {best[1]:,}, and "
                f"stop_at_loss is {config.stop_at_loss:g}"
            )
        elif config.patience is not None and self.since >= config.patience:
            self.ended = (
                f"{self.since} held-out evaluation{'s' * (self.since > 1)} without a new best "
                f"(patience), which was {best[0]:.3f} bits per byte at step {best[1]:,}"
            )
        if self.ended is not None:
            report(f"{self.ended}: training ends")
        return self.ended is not None

    def close(self, run: Run, saved: Path | None, report: Tell) -> None:
        """Report the best weights: those of the best evaluation, or else the last."""
        if not self._config.keeps_best:
            return
        if checkpoint.best(run) is None and saved is not None:
            try:
                checkpoint.mark_best(run, saved)
            except EnvironmentLacks as error:
                report(f"no best checkpoint: {error}")
        if (best := checkpoint.best(run)) is not None:
            known = "" if self.best is None else f", {self.best[0]:.3f} bits per byte"
            where = run.checkpoints / checkpoint.BEST
            report(f"best held-out evaluation{known}: {where} ({best.name})")

    def to_json(self) -> dict[str, Any] | None:
        """The values for a checkpoint."""
        if self.best is None:
            return None
        return {"bits_per_byte": self.best[0], "step": self.best[1], "text": self._text}


def write_sample(run: Training) -> None:
    """Let a worker write a sample of text after the training; report a missing one."""
    monitor, samples, reason = run.monitor, run.monitor.samples, "no worker was free in time"
    run.arena.counters.store("side_until_ns", monotonic_ns() + int(SAMPLE_S * 1e9))
    run.ask("sample")
    run.command(Command.SAMPLE)
    try:
        run.until(lambda: monitor.samples > samples, Doing(Activity.SAMPLING), 2 * SAMPLE_S)
    except GAVE_UP_WORKER as error:
        reason = str(error)  # the run is complete
    if monitor.samples == samples and not run.interrupts():
        run.report(f"no sample: {reason}; mlxhog generate writes one")
