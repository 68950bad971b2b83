"""Evaluations of held-out text, and samples: what workers do beside their steps.

While a run trains, one worker takes on what the supervisor asks for. In its end all share out the
batches of the final evaluation, whose scores lie in the arena, so that nothing depends on who
listens when:

    segment     line  word  meaning
    evaluation     k     0  the round in which batch k was scored, 0 in none
                         1  summed cross entropy in nats, a float
                         2  bytes of text its labels decode to
                         3  its labels

A worker writes the sums of a batch, then its round. Batches are taken in an order that spreads the
first ones evenly over the text: an evaluation that ends early is a sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.control import EVAL_ROUND, Command, RecordKind, Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Backend
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import EMULATED, TrainConfig
from mlxhog.data import heldout
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.decoding.generate import answer
from mlxhog.decoding.sampling import Sampler
from mlxhog.errors import EnvironmentLacks
from mlxhog.models.families import param_count
from mlxhog.strategies import Context
from mlxhog.strategies.words import LINE, Words
from mlxhog.training.job import Job

SEGMENT = "evaluation"
FINAL_TOKENS = 2_000_000  # the final evaluation covers at most this much text
SAMPLE_PROMPT = "The "
SAMPLE_TOKENS = 160
EVALUATING_PART = 0.1  # of a budget of time, for one evaluation while training
_ROUND, _NATS, _BYTES, _TOKENS = range(4)


@dataclass(frozen=True)
class Score:
    """Sums over a piece of held-out text.

    Attributes:
        nats: cross entropy of its labels.
        n_bytes: of text.
        tokens: labels.
        share: how much of the text that was to be evaluated it is, 0 to 1.
    """

    nats: float
    n_bytes: int
    tokens: int
    share: float

    @property
    def bits_per_byte(self) -> float | None:
        """Cross entropy per byte of text, None without any."""
        return heldout.bits_per_byte(self.nats, self.n_bytes) if self.n_bytes else None


def final_tokens(config: TrainConfig) -> int:
    """Most held-out text of the final evaluation; an emulated model is slow and gets a sample."""
    return config.eval_tokens if config.kernels == EMULATED else FINAL_TOKENS


@dataclass(frozen=True)
class HeldOutText:
    """So much held-out text, in batches of one shape.

    Attributes:
        file: the held-out token file.
        seq_len: length of a sequence.
        rows: sequences in a batch.
        eval_tokens: about how many labels, spread evenly over the file.
    """

    file: TokenFile
    seq_len: int
    rows: int
    eval_tokens: int

    @classmethod
    def of(
        cls, file: TokenFile, config: TrainConfig, parameters: int, eval_tokens: int
    ) -> HeldOutText:
        """Choose the shape of batches by the model's number of parameters."""
        rows = heldout.rows_of_batch(parameters, config.seq_len)
        return cls(file, config.seq_len, rows, eval_tokens)

    @property
    def n_batches(self) -> int:
        """Batches in all."""
        return heldout.n_batches(
            self.file, seq_len=self.seq_len, batch_size=self.rows, eval_tokens=self.eval_tokens
        )

    def score(self, backend: Backend, batch: int) -> Score:
        """Score one batch at the parameters in the backend's inbox."""
        (part,) = heldout.batches(
            self.file,
            seq_len=self.seq_len,
            batch_size=self.rows,
            eval_tokens=self.eval_tokens,
            first=batch,
            count=1,
        )
        result = backend.evaluate(part)
        return Score(result.nats, part.n_bytes, result.targets, 1 / self.n_batches)

    def score_until(self, backend: Backend, is_over: Callable[[], bool]) -> Score:
        """Score batches until none is left or `is_over`, asked before each but the first."""
        nats, n_bytes, tokens, n_scored = 0.0, 0, 0, 0
        for batch in spread(self.n_batches):
            if n_scored and is_over():
                break
            score = self.score(backend, batch)
            nats, n_scored = nats + score.nats, n_scored + 1
            n_bytes, tokens = n_bytes + score.n_bytes, tokens + score.tokens
        return Score(nats, n_bytes, tokens, n_scored / self.n_batches)


def spread(n: int) -> list[int]:
    """Return 0 .. n - 1 in an order whose first numbers, however many, are spread evenly.

    Source: van der Corput 1935: the numbers in the order of their bits reversed.

    >>> spread(6)
    [0, 4, 2, 1, 5, 3]
    """
    order, half = [0], 1 << max(n - 1, 0).bit_length()
    while half > 1:
        half //= 2
        order += [k + half for k in order]
    return [k for k in order if k < n]


def segment(file: TokenFile, config: TrainConfig, parameters: int) -> tuple[str, int]:
    """Type and length of the arena's segment; see `arena.plan`."""
    text = HeldOutText.of(file, config, parameters, final_tokens(config))
    return "uint8", text.n_batches * LINE


class Scores:
    """The table of the final evaluation, over the arena's segment.

    Concurrency: workers put in scores of different batches; two that score the same batch at the
    same parameters (one of them for a worker thought dead) write the same.
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        """Wrap the segment."""
        self._words = Words(data)
        self._table = data.view(np.uint64).reshape(-1, LINE // 8)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._table)

    def round_of(self, batch: int) -> int:
        """The round in which a batch was scored last, 0 for none."""
        return self._words.load(batch, _ROUND)

    def put(self, batch: int, round_: int, score: Score) -> None:
        """Write what a batch came to, then publish it."""
        self._words.store_float(batch, _NATS, score.nats)
        self._words.store(batch, _BYTES, score.n_bytes)
        self._words.store(batch, _TOKENS, score.tokens)
        self._words.store(batch, _ROUND, round_)

    def total(self, first: int) -> Score:
        """Add up the batches that were scored since round `first`."""
        maybe = np.flatnonzero(self._table[:, _ROUND] >= first)
        batches = [k for k in maybe.tolist() if self.round_of(k) >= first]  # acquires their sums
        rows = self._table[batches]
        nats = float(rows[:, _NATS].copy().view(np.float64).sum())
        n_bytes, tokens = int(rows[:, _BYTES].sum()), int(rows[:, _TOKENS].sum())
        return Score(nats, n_bytes, tokens, len(batches) / len(self))


# -- in a worker ---------------------------------------------------------------------------------


def takes_on(context: Context, requests: str, starts: str) -> bool:
    """Whether something is asked for that no other worker has taken on; at most one gets it.

    Args:
        context: the worker that asks.
        requests: counter of what the supervisor has asked for.
        starts: counter of what has been taken on.
    """
    counters = context.arena.counters
    n = counters.load(starts)
    return counters.load(requests) > n and counters.compare_exchange(starts, n, n + 1)


@dataclass(frozen=True)
class Text:
    """What evaluations and samples need beside the worker; picklable.

    Attributes:
        val: token file of held-out text.
        tokenizer: made the tokens.
    """

    val: Path
    tokenizer: Tokenizer

    def open(self, job: Job, context: Context, ring: Ring) -> TextJobs:
        """Open the held-out text in a worker."""
        return TextJobs(self, job, context, ring)


class TextJobs:
    """Evaluations and samples; each that is asked for is taken on by one worker.

    What is done while training ends with it, and an evaluation takes `EVALUATING_PART` of a budget
    of time at most. After training both end when the supervisor says.
    """

    def __init__(self, text: Text, job: Job, context: Context, ring: Ring) -> None:
        """Open the held-out text."""
        self.text, self.job, self.context, self.ring = text, job, context, ring
        config, file = job.config, TokenFile.open(text.val)
        parameters = param_count(job.setup.model)
        self._sample_text = HeldOutText.of(file, config, parameters, config.eval_tokens)
        self._final_text = HeldOutText.of(file, config, parameters, final_tokens(config))
        self._scores = Scores(context.arena.segment(SEGMENT))
        self._order = spread(len(self._scores))
        self._final_round = 0

    def serve(self) -> None:
        """Evaluate, or write a sample, where that is asked for.

        An evaluation only while training: the run's result has the final one, which covers more.
        """
        if self.context.training() and takes_on(self.context, "eval_asked", "eval_taken"):
            self._evaluate()
        if takes_on(self.context, "sample_asked", "sample_taken"):
            self._sample()

    def _is_over(self) -> bool:
        """Whether what a worker does beside its steps has to end."""
        context, counters = self.context, self.context.arena.counters
        if context.training():
            return context.used_up()
        until_ns = counters.load("side_until_ns")
        is_asked_for = counters.load("command") in (Command.EVALUATE, Command.SAMPLE)
        return not is_asked_for or bool(until_ns and monotonic_ns() >= until_ns)

    def _evaluate(self) -> None:
        """Evaluate a piece of the held-out text; one that training ended before is dropped."""
        context, began_ns = self.context, monotonic_ns()
        seconds = context.budget.seconds
        until_ns = None if seconds is None else began_ns + EVALUATING_PART * seconds * 1e9
        context.copy_to_inbox()
        context.entry.beat(Phase.EVALUATE)

        def is_over() -> bool:
            context.entry.beat()
            return self._is_over() or (until_ns is not None and monotonic_ns() >= until_ns)

        score = self._sample_text.score_until(context.backend, is_over)
        if score.share < 1.0 and self._is_over():
            return
        self.ring.append(
            kind=RecordKind.EVALUATION,
            worker=self.job.slot,
            version=context.arena.counters.load("version"),
            t_ns=monotonic_ns(),
            nats=score.nats,
            n_bytes=score.n_bytes,
            tokens=score.tokens,
        )

    def evaluate_rest(self) -> None:
        """Score batches of the held-out text until none is left, or the time is over."""
        counters, entry = self.context.arena.counters, self.context.entry
        if counters.load("eval_next") // EVAL_ROUND == self._final_round:
            return
        copied_round: int | None = None
        while not self._is_over():
            round_, place = divmod(counters.add("eval_next", 1), EVAL_ROUND)
            if place >= len(self._order):
                self._final_round = round_
                return
            batch = self._order[place]
            if self._scores.round_of(batch) >= counters.load("eval_first"):
                continue  # before a worker died, and the rest was shared out anew
            entry.beat(Phase.EVALUATE)
            if copied_round != round_:  # another round may be of other parameters
                self.context.copy_to_inbox()
                copied_round = round_
            score = self._final_text.score(self.context.backend, batch)
            self._scores.put(batch, round_, score)

    def _sample(self) -> None:
        """Write a sample of text beside the run: as much as there is time for."""
        self.context.copy_to_inbox()
        self.context.entry.beat(Phase.SAMPLE)
        tokenizer, texts = self.text.tokenizer, list[str]()
        pieces = answer(
            self.context.backend,
            [tokenizer.encode(SAMPLE_PROMPT.encode())],
            tokenizer=tokenizer,
            sampler=Sampler(temperature=0.8, seed=self.job.config.seed),
            max_new_tokens=SAMPLE_TOKENS,
        )
        for piece in pieces:
            self.context.entry.beat()
            texts.append(piece.text)
            if self._is_over():
                break
        with contextlib.suppress(EnvironmentLacks):  # a full disk costs a sample, not a worker
            Run(self.job.run_dir).append_sample(SAMPLE_PROMPT + "".join(texts))
        self.ring.append(kind=RecordKind.SAMPLE, worker=self.job.slot, t_ns=monotonic_ns())
