"""Evaluations of held-out text and samples, the side jobs of workers.

All evaluations of a run score the same part of the held-out text (`data.subset`), and
`held-out bits per byte` always refers to that part. An evaluation that does not score all of it
does not count. During training one worker takes on each request of the supervisor. At the end all
workers share the batches of that part, then those of the rest while there is time; the rest gives
the larger final score, a separate number. The scores lie in the arena:

    segment     line  word  meaning
    evaluation     k     0  the round in which the batch at place k was scored; 0: not scored
                         1  summed cross entropy in nats, a float
                         2  bytes of text that its labels decode to
                         3  number of labels

A worker writes the sums of a batch, then its round. The order of batches of the larger score
spreads the first ones evenly over the text, so a score that ends early is of a sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.control import EVAL_ROUND, Command, RecordKind, Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.words import LINE, Table
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Backend
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import EMULATED, TrainConfig
from mlxhog.data import heldout, subset
from mlxhog.data.prepare import Prepared
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.decoding.generate import answer
from mlxhog.decoding.options import Sampling
from mlxhog.errors import EnvironmentLacks
from mlxhog.models.families import param_count
from mlxhog.strategies import Context
from mlxhog.training.job import Job

SEGMENT = "evaluation"
FINAL_TOKENS = 2_000_000  # the larger final score covers at most about this much text
EVALUATING_S = 60.0  # limit of the last evaluation without a budget of time, if training took less
SUBSET_TIME = 0.2  # largest part of a budget of time for scoring the fixed part, by `FLOPS`
LEAST_BYTES = 1024
FLOPS = {EMULATED: 1e9}
"""Operations per second by which the size of the fixed part is chosen, by the kernels."""
USUAL_FLOPS = 1e11
"""Two CPU cores. A constant, so that the same options mean the same text on every machine."""
SAMPLE_PROMPT = "The"
SAMPLE_TOKENS = 160
_ROUND, _NATS, _BYTES, _TOKENS = range(4)
_SCORES = Table(batch=(1, "round nats bytes tokens"))  # with as many rows as there are batches


@dataclass(frozen=True)
class HeldOutScore:
    """Sums over a piece of held-out text.

    Attributes:
        nats: cross entropy of its labels.
        n_bytes: bytes of text.
        tokens: number of labels.
        share: scored part of the text that was to be evaluated, 0 to 1.
    """

    nats: float
    n_bytes: int
    tokens: int
    share: float

    @property
    def bits_per_byte(self) -> float | None:
        """Cross entropy per byte of text; None without text."""
        return heldout.bits_per_byte(self.nats, self.n_bytes) if self.n_bytes else None


@dataclass(frozen=True)
class HeldOutPart:
    """The part of the held-out text that all evaluations of a run score.

    Attributes:
        asked_bytes: its size, as `subset.of` takes it.
        text: its name; scores of the same text have the same name, see `subset.name`.
        n_bytes: bytes of text in it, prompts of examples included.
        share: its part of all held-out text, up to 1.
        batches: number of its batches.
        all_batches: with those of the larger final score.
        larger_share: largest part of all held-out text in the larger final score; 0 without it.
        tokens: number of its tokens.
        estimate_s: seconds to score it by `FLOPS`.
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
    estimate_s: float
    seen: str = ""

    @classmethod
    def of(
        cls, data: Prepared, config: TrainConfig, parameters: int, asked_bytes: int | None = None
    ) -> HeldOutPart:
        """Choose the part.

        Args:
            data: of the run.
            config: of the run.
            parameters: numbers in the model.
            asked_bytes: the size that a resumed run had before; None chooses one.
        """
        file = TokenFile.open(data.val)
        if asked_bytes is None or config.eval_tokens is not None:
            asked_bytes = choose_bytes(config, parameters, file)
        texts = HeldOutTexts(file, config, parameters, asked_bytes)
        part, larger, whole = texts.part, texts.larger, file.header["bytes"]
        named_bytes = None if part.file is file else asked_bytes
        return cls(
            asked_bytes=asked_bytes,
            text=subset.name(data.corpus_sha256, data.rule, named_bytes),
            n_bytes=part.file.header["bytes"],
            share=part.file.header["bytes"] / whole,
            batches=part.n_batches,
            all_batches=texts.n_batches,
            larger_share=0.0 if larger is None else larger.file.header["bytes"] / whole,
            tokens=part.file.n_tokens,
            estimate_s=estimate_s(config, parameters, part.file.n_tokens),
        )

    def to_json(self) -> dict[str, Any]:
        """The values for run.json and checkpoints."""
        return asdict(self)


def choose_bytes(config: TrainConfig, parameters: int, file: TokenFile) -> int:
    """Return the size of the part that a new run is evaluated on, by default `subset.BYTES`.

    `eval_tokens` sets another size. If scoring takes too much of the budget, the size is halved
    until it fits, or to `LEAST_BYTES`. The same options always give the same size, as nothing is
    measured.

    Args:
        config: of the run.
        parameters: numbers in the model.
        file: all of the held-out text.
    """
    if config.eval_tokens is not None:
        labels, text_bytes = file.n_tokens - file.header["documents"], int(file.header["bytes"])
        return max(1, round(config.eval_tokens * text_bytes / max(int(labels), 1)))
    most_s = EVALUATING_S if config.time is None else SUBSET_TIME * config.time
    n_bytes = subset.BYTES
    while n_bytes > LEAST_BYTES and estimate_s(config, parameters, n_bytes) > most_s:
        n_bytes //= 2
    return n_bytes


def estimate_s(config: TrainConfig, parameters: int, tokens: int) -> float:
    """Seconds to score n tokens by `FLOPS`: two operations per parameter and token."""
    return 2.0 * parameters * tokens / FLOPS.get(config.kernels, USUAL_FLOPS)


@dataclass(frozen=True)
class HeldOutText:
    """Held-out text in batches of one shape.

    Attributes:
        file: its token file.
        seq_len: length of a sequence.
        rows: sequences in a batch.
    """

    file: TokenFile
    seq_len: int
    rows: int

    @classmethod
    def of(cls, file: TokenFile, config: TrainConfig, parameters: int) -> HeldOutText:
        """Choose the shape of batches by the model's number of parameters."""
        return cls(file, config.seq_len, heldout.rows_of_batch(parameters, config.seq_len))

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return heldout.n_batches(self.file, seq_len=self.seq_len, batch_size=self.rows)

    def score(self, backend: Backend, batch: int) -> HeldOutScore:
        """Score one batch at the parameters in the backend's inbox."""
        (part,) = heldout.batches(
            self.file, seq_len=self.seq_len, batch_size=self.rows, first=batch, count=1
        )
        result = backend.evaluate(part)
        return HeldOutScore(result.nats, part.n_bytes, result.targets, 1 / self.n_batches)

    def score_whole(self, backend: Backend, is_over: Callable[[], bool]) -> HeldOutScore | None:
        """Score all batches; None if `is_over`, called before each, ends the evaluation."""
        nats, n_bytes, tokens = 0.0, 0, 0
        for batch in range(self.n_batches):
            if is_over():
                return None
            score = self.score(backend, batch)
            nats, n_bytes = nats + score.nats, n_bytes + score.n_bytes
            tokens += score.tokens
        return HeldOutScore(nats, n_bytes, tokens, 1.0)


class HeldOutTexts:
    """The text that the last evaluation scores, batch by batch: the part, then the larger text.

    Attributes:
        part: the text of all evaluations.
    """

    def __init__(
        self, file: TokenFile, config: TrainConfig, parameters: int, asked_bytes: int
    ) -> None:
        """Find the part in all of the held-out text."""
        self.part = HeldOutText.of(subset.of(file, asked_bytes), config, parameters)
        self._file, self._config, self._parameters = file, config, parameters
        self._asked_bytes = asked_bytes

    @cached_property
    def larger(self) -> HeldOutText | None:
        """All held-out text, or up to `FINAL_TOKENS` of it.

        None if the part is as large, and for emulated models, which are slow. Opening it copies its
        tokens, so it is opened on first use: many workers never score any of it.
        """
        file, config = self._file, self._config
        most = FINAL_TOKENS * file.header["bytes"] // file.n_tokens
        if self.part.file is file or most <= self._asked_bytes or config.kernels == EMULATED:
            return None
        return HeldOutText.of(subset.of(file, most), config, self._parameters)

    @cached_property
    def _order(self) -> list[int]:
        """Batches of the larger text in scoring order."""
        return [] if self.larger is None else spread(self.larger.n_batches)

    @property
    def n_batches(self) -> int:
        """Number of batches of both."""
        return self.part.n_batches + len(self._order)

    def score(self, backend: Backend, place: int) -> HeldOutScore:
        """Score the batch at a place in the order, at the parameters in the backend's inbox."""
        n = self.part.n_batches
        if place < n or self.larger is None:
            return self.part.score(backend, place)
        return self.larger.score(backend, self._order[place - n])


def spread(n: int) -> list[int]:
    """Return 0 .. n - 1 in an order of which every prefix is spread evenly.

    Source: van der Corput 1935: order by reversed bits.

    >>> spread(6)
    [0, 4, 2, 1, 5, 3]
    """
    order, half = [0], 1 << max(n - 1, 0).bit_length()
    while half > 1:
        half //= 2
        order += [k + half for k in order]
    return [k for k in order if k < n]


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
        self._words = _SCORES.open(data)
        self._table = data.view(np.uint64).reshape(-1, LINE // 8)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._table)

    def round_of(self, place: int) -> int:
        """The last round in which the batch at a place was scored; 0 for none."""
        return self._words["round", place]

    def put(self, place: int, round_: int, score: HeldOutScore) -> None:
        """Write the score of the batch at a place, then publish it."""
        self._words.set_real(("nats", place), score.nats)
        self._words["bytes", place], self._words["tokens", place] = score.n_bytes, score.tokens
        self._words["round", place] = round_

    def total(self, first: int, begin: int = 0, end: int | None = None) -> HeldOutScore:
        """Add up the batches at places from `begin` to `end` that were scored since `first`."""
        end = len(self) if end is None else end
        maybe = begin + np.flatnonzero(self._table[begin:end, _ROUND] >= first)
        batches = [k for k in maybe.tolist() if self.round_of(k) >= first]  # acquires their sums
        rows = self._table[batches]
        nats = float(rows[:, _NATS].copy().view(np.float64).sum())
        n_bytes, tokens = int(rows[:, _BYTES].sum()), int(rows[:, _TOKENS].sum())
        return HeldOutScore(nats, n_bytes, tokens, len(batches) / max(end - begin, 1))


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
    context.settle()  # a worker with a request holds no ticket (`Supervisor.holding_still`)
    return True


@dataclass(frozen=True)
class Text:
    """The text and tokenizer for evaluations and samples; picklable.

    Attributes:
        val: token file of held-out text.
        tokenizer: of its tokens.
        asked_bytes: size of the part that evaluations score.
    """

    val: Path
    tokenizer: Tokenizer
    asked_bytes: int

    def open(self, job: Job, context: Context, ring: Ring) -> TextJobs:
        """Open the held-out text in a worker."""
        return TextJobs(self, job, context, ring)


class TextJobs:
    """Evaluations and samples; one worker takes on each request.

    During training both end with the training; after it, when the supervisor says so.
    """

    def __init__(self, text: Text, job: Job, context: Context, ring: Ring) -> None:
        """Open the held-out text."""
        self.text, self.job, self.context, self.ring = text, job, context, ring
        config, file = job.config, TokenFile.open(text.val)
        parameters = param_count(job.setup.model)
        self._texts = HeldOutTexts(file, config, parameters, text.asked_bytes)
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
        """Whether a side job has to end."""
        context, counters = self.context, self.context.arena.counters
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

        def is_over() -> bool:
            context.entry.beat()
            return self._is_over()

        score = self._texts.part.score_whole(context.backend, is_over)
        if score is None:
            return
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
        self.context.copy_to_inbox()
        self.context.entry.beat(Phase.SAMPLE)
        tokenizer, texts = self.text.tokenizer, list[str]()
        pieces = answer(
            self.context.backend,
            [tokenizer.encode(SAMPLE_PROMPT.encode())],
            tokenizer=tokenizer,
            sampling=Sampling(max_new_tokens=SAMPLE_TOKENS, seed=self.job.config.seed),
        )
        for piece in pieces:
            self.context.entry.beat()
            texts.append(piece.text)
            if self._is_over():
                break
        with contextlib.suppress(EnvironmentLacks):  # a full disk costs a sample, not a worker
            Run(self.job.run_dir).append_sample(SAMPLE_PROMPT + "".join(texts))
        self.ring.append(kind=RecordKind.SAMPLE, worker=self.job.slot, t_ns=monotonic_ns())
