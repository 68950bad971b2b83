"""Evaluations of held-out text and samples: during training, and by all workers at the end.

All evaluations of a run score the same part of the held-out text (`data.subset`), and
`held-out bits per byte` always refers to that part. An evaluation that does not score all of it
does not count. During training one worker takes on each request of the supervisor. At the end all
workers share the batches of that part, then those of a larger one, whose score is a separate
number. Both sizes follow from the options alone, whatever the budget. The scores lie in the arena:

    segment     line  word  meaning
    evaluation     k     0  the round in which the batch at place k was scored; 0: not scored
                         1  summed cross entropy in nats, a float
                         2  bytes of text that its labels decode to
                         3  number of labels

A worker writes the sums of a batch, then its round.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.control import EVAL_ROUND, Command, RecordKind, Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.words import LINE, Table
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
    from mlxhog.training.session import Session

SEGMENT = "evaluation"
PART_FLOPS, LARGER_FLOPS = 1e12, 2e12
"""Most work to score the part and the larger text: 10 s and 20 s of two CPU cores."""
EMULATED_SHARE = 0.01  # of these, for emulated models, which are slow
LARGER_TOKENS = 2_000_000
LEAST_BYTES = 1024
EVALUATING_PART = 0.05  # largest part of the workers' time for evaluations at an interval
INTERRUPTED_S = 5.0  # limit of the evaluation after an interrupt
SAMPLE_S = 10.0  # limit of the last sample
SAMPLE_PROMPT = "The"
SAMPLE_TOKENS = 160
GAVE_UP_WORKER = (ConfigError, EnvironmentLacks, WorkerFailed)
"""Errors of a worker that is not replaced; the others continue."""
_SCORES = Table(batch=(1, "round nats bytes tokens"))  # with as many rows as there are batches


class Score(NamedTuple):
    """Sums over a piece of held-out text: nats of its labels, bytes of text, labels.

    `share` is the scored part of the text that was to be evaluated, 0 to 1.
    """

    nats: float
    n_bytes: int
    tokens: int
    share: float = 1.0


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

    def score_part(self, backend: Backend, is_over: Callable[[], bool]) -> Score | None:
        """Score all of the part; None if `is_over`, called before each batch, ends it."""
        scores = []
        for place in range(self.n_batches(self.part)):
            if is_over():
                return None
            scores.append(self.score(backend, place))
        nats, n_bytes, tokens, _ = map(sum, zip(*scores, strict=True))
        return Score(nats, n_bytes, tokens)


def segment(part: HeldOutPart) -> tuple[str, int]:
    """Type and length of the arena's segment; see `arena.plan`."""
    return "uint8", part.all_batches * LINE


class ScoreTable:
    """The table of the final evaluation, over the arena's segment.

    Concurrency: workers write scores of different batches. Two workers that score the same batch at
    the same parameters (one in place of a worker assumed dead) write the same values.
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        """Wrap the segment."""
        self._words, self.batches = _SCORES.open(data), len(data) // LINE

    def round_of(self, place: int) -> int:
        """The last round in which the batch at a place was scored; 0 for none."""
        return self._words["round", place]

    def put(self, place: int, round_: int, score: Score) -> None:
        """Write the score of the batch at a place, then publish it."""
        self._words.set_real(("nats", place), score.nats)
        self._words["bytes", place], self._words["tokens", place] = score.n_bytes, score.tokens
        self._words["round", place] = round_

    def total(self, first: int, begin: int, end: int) -> Score:
        """Add up the batches at places from `begin` to `end` that were scored since `first`."""
        places = [k for k in range(begin, end) if self.round_of(k) >= first]  # acquires their sums
        nats = float(np.array([self._words.real(("nats", k)) for k in places]).sum())
        n_bytes, tokens = (
            sum(self._words[name, k] for k in places) for name in ("bytes", "tokens")
        )
        return Score(nats, n_bytes, tokens, len(places) / max(end - begin, 1))


# -- in a worker ---------------------------------------------------------------------------------


def takes_on(context: Context, requests: str, starts: str) -> bool:
    """Take on a request of the supervisor; False if none is open. At most one worker gets each.

    Args:
        context: of this worker.
        requests: counter of requests.
        starts: counter of requests that were taken on.
    """
    counters = context.arena.counters
    n = counters.load(starts)
    if not (counters.load(requests) > n and counters.compare_exchange(starts, n, n + 1)):
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
        parameters = param_count(job.setup.model)
        self._texts = HeldOutTexts(TokenFile.open(val), job.config, parameters, asked_bytes)
        self._scores = ScoreTable(context.arena.segment(SEGMENT))
        self._final_round = 0

    def serve(self) -> None:
        """Evaluate or write a sample on request.

        It evaluates only during training: all workers share the last evaluation (`evaluate_rest`).
        """
        if self.context.training() and takes_on(self.context, "eval_asked", "eval_taken"):
            self._evaluate()
        if takes_on(self.context, "sample_asked", "sample_taken"):
            self._sample()

    def _is_over(self) -> bool:
        """Whether a side job has to end; also a sign of life."""
        context, counters = self.context, self.context.arena.counters
        context.entry.beat()
        if context.training():
            return context.used_up()
        until_ns = counters.load("side_until_ns")
        is_asked_for = counters.load("command") in (Command.EVALUATE, Command.SAMPLE)
        return not is_asked_for or bool(until_ns and monotonic_ns() >= until_ns)

    def _evaluate(self) -> None:
        """Evaluate the fixed part; drop the result if training ends before it is complete."""
        context, began_ns = self.context, monotonic_ns()
        steps = context.arena.counters.load("steps")
        context.copy_to_inbox()
        context.entry.beat(Phase.EVALUATE)
        score = self._texts.score_part(context.backend, self._is_over)
        if score is not None:
            self.ring.append(
                kind=RecordKind.EVALUATION,
                worker=self.job.slot,
                version=steps,
                t_ns=monotonic_ns(),
                nats=score.nats,
                n_bytes=score.n_bytes,
                tokens=score.tokens,
                compute_s=(monotonic_ns() - began_ns) / 1e9,
            )

    def evaluate_rest(self) -> None:
        """Score batches of the held-out text until the round is complete or its time is over."""
        counters, entry = self.context.arena.counters, self.context.entry
        if counters.load("eval_next") // EVAL_ROUND == self._final_round:
            return
        copied_round: int | None = None
        while not self._is_over():
            round_, place = divmod(counters.add("eval_next", 1), EVAL_ROUND)
            if place >= counters.load("eval_end"):
                self._final_round = round_
                return
            if self._scores.round_of(place) >= counters.load("eval_first"):
                continue  # before a worker died and a new round divided the rest
            entry.beat(Phase.EVALUATE)
            if copied_round != round_:  # another round may score other parameters
                self.context.copy_to_inbox()
                copied_round = round_
            score = self._texts.score(self.context.backend, place)
            self._scores.put(place, round_, score)

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


class HeldOutWatch:
    """The held-out evaluations of a run during training: when, the best, and early stopping.

    Only evaluations during training count. A checkpoint stores the best, so a resumed run continues
    the count, with full patience, unless it scores another part. The best weights are saved right
    after their evaluation. Lock-free workers continue while one evaluates, so the saved model is
    the evaluated one plus the steps since.

    Attributes:
        best: bits per byte and step of the best so far; None before the first.
        since: evaluations after it.
        ended: reason for an end of training before its budget; None otherwise.
    """

    def __init__(self, config: TrainConfig, resumption: Resumption | None, text: str) -> None:
        """Begin, or continue from a checkpoint.

        Args:
            config: says when evaluations are due, what ends the run, and if the best is kept.
            resumption: the resumed run; None for a new one.
            text: name of the part that is scored.
        """
        self._config, self._text = config, text
        self.best: tuple[float, int] | None = None
        self.since = self._evaluations = 0
        self.ended: str | None = None
        self._asked_at: tuple[int, int] | None = None
        best = None if resumption is None else resumption.state["best"]
        if isinstance(best, Mapping) and best.get("text") == text:
            self.best = best["bits_per_byte"], int(best["step"])

    def ask_for_next(self, session: Session, monitor: Monitor) -> None:
        """Let a worker evaluate if an evaluation is due and does not take too much time.

        There is no new one while another runs, unless its worker may have died.
        """
        if self._config.eval_every.seconds is not None:
            now = (monitor.evaluations, session.ends())
            most_s = EVALUATING_PART * session.strategy.workers * monitor.seconds()
            if now == self._asked_at or monitor.evaluating_s > most_s:
                return
            self._asked_at = now
        session.ask("eval")

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


class FinalEvaluation:
    """Evaluations of the final parameters of a run, one after the other.

    The scores lie in the arena (`ScoreTable`). If a worker dies, a new round divides its batches
    among the others. A run whose workers cannot finish the larger score is done without it.
    """

    def __init__(self, session: Session, part: HeldOutPart, monitor: Monitor) -> None:
        """Prepare; this starts no evaluation, and `monitor` receives the scores."""
        self.copies_bits_per_byte: list[float] = []
        self._session, self._part, self._monitor = session, part, monitor
        self._counters = session.arena.counters
        self._scores = ScoreTable(session.arena.segment(SEGMENT))
        self._round = self._first = self._end = self._interrupts = 0

    def begin(self) -> None:
        """Let all workers score the held-out text with the model.

        They score the fixed part alone after an interrupt, for a few seconds, and if workers have
        parameters of their own, which are scored next.
        """
        self._session.drain()  # first an evaluation that ended together with the training
        alone = self._session.interrupts() or self._session.strategy.own_copies()
        self._begin(self._part.batches if alone else self._scores.batches)

    def _begin(self, end: int) -> None:
        """Begin to score batches up to `end` with the present parameters."""
        self._round += 1
        self._first, self._end, self._interrupts = self._round, end, self._session.interrupts()
        until_ns = monotonic_ns() + int(INTERRUPTED_S * 1e9) if self._interrupts else 0
        self._counters.store("side_until_ns", until_ns)
        self._counters.store("eval_first", self._first)
        self._counters.store("eval_end", end)
        self._counters.store("eval_next", self._round * EVAL_ROUND)
        self._session.command(Command.EVALUATE)

    def _share(self) -> float:
        return self._scores.total(self._first, 0, self._end).share

    def _wait(self) -> Score:
        """Wait until every batch is scored, or the user interrupts; the score of the fixed part.

        Raises:
            ConfigError, EnvironmentLacks, WorkerFailed: see `Session.poll`; the fixed part cannot
                be scored without a worker that failed.
        """
        session, limit_s = self._session, INTERRUPTED_S if self._interrupts else math.inf

        def look(ends: int) -> Callable[[], bool]:
            return lambda: self._share() == 1.0 or session.ends() > ends

        try:
            while session.pool and self._share() < 1.0 and not self._is_interrupted():
                if not session.until(look(session.ends()), self._doing, limit_s):
                    break
                if self._share() < 1.0:  # a worker has died
                    self._round += 1
                    self._counters.store("eval_next", self._round * EVAL_ROUND)
        except GAVE_UP_WORKER as error:
            if self._part_score().share < 1.0:
                raise
            session.report(f"the larger held-out score is left out: {error}")
        return self._part_score()

    def _part_score(self) -> Score:
        return self._scores.total(self._first, 0, self._part.batches)

    def _is_interrupted(self) -> bool:
        return self._session.interrupts() > self._interrupts

    def _doing(self) -> Doing:
        return Doing(Activity.EVALUATING, round(100 * self._share()))

    def finish(self) -> None:
        """Wait for the score of the model, and score the copies that it is the average of."""
        session, monitor, part = self._session, self._monitor, self._part
        score = self._wait()
        if score.share < 1.0 and self._is_interrupted():
            self.begin()
            score = self._wait()
        if score.share < 1.0 or not score.n_bytes:
            return  # a score of less text is not comparable with earlier ones
        monitor.take_evaluation(score.nats, score.n_bytes, score.tokens, monitor.totals()[0])
        larger = self._scores.total(self._first, part.batches, self._scores.batches)
        if self._end > part.batches and larger.share == 1.0 and larger.n_bytes:
            bits = heldout.bits_per_byte(larger.nats, larger.n_bytes)
            monitor.take_final(bits, larger.tokens, part.larger_share)
        if not session.interrupts() and self._score_copies():
            average = heldout.bits_per_byte(score.nats, score.n_bytes)
            if warning := session.strategy.warning(average, self.copies_bits_per_byte):
                session.report(warning)

    def _score_copies(self) -> bool:
        """Score each worker's own parameters if the model is their average; whether all are."""
        session = self._session
        with session.strategy.each_copy(session.arena) as copies:
            for load in copies:
                session.until(session.resting, Doing(Activity.EVALUATING))
                if session.interrupts():
                    return False
                load()
                self._begin(self._part.batches)
                score = self._wait()
                if score.share < 1.0:
                    return False
                bits = heldout.bits_per_byte(score.nats, score.n_bytes)
                self.copies_bits_per_byte.append(bits)
        return True


def write_sample(session: Session, monitor: Monitor) -> None:
    """Let a worker write a sample of text after the training; report a missing one."""
    samples, reason = monitor.samples, "no worker was free in time"
    session.arena.counters.store("side_until_ns", monotonic_ns() + int(SAMPLE_S * 1e9))
    session.ask("sample")
    session.command(Command.SAMPLE)
    try:
        session.until(lambda: monitor.samples > samples, Doing(Activity.SAMPLING), 2 * SAMPLE_S)
    except GAVE_UP_WORKER as error:
        reason = str(error)  # the run is complete
    if monitor.samples == samples and not session.interrupts():
        session.report(f"no sample: {reason}; mlxhog generate writes one")
