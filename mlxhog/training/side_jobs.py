"""Evaluations of held-out text and samples, which a worker makes beside its steps."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from mlxhog.arena import records
from mlxhog.arena.control import EVAL_ROUND, Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.checkpoint.run import Run
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.decoding.generate import generate
from mlxhog.decoding.sampling import Sampler
from mlxhog.decoding.text import stream_text
from mlxhog.errors import EnvironmentLacks
from mlxhog.models.families import param_count
from mlxhog.strategies import Context
from mlxhog.training import evaluation
from mlxhog.training.evaluation import HeldOutText
from mlxhog.training.job import Job

SAMPLE_PROMPT = "The "
SAMPLE_TOKENS = 160
EVALUATING_PART = 0.1  # of a budget of time, for one evaluation while training


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

    def open(self, job: Job, context: Context, ring: records.Ring) -> TextJobs:
        """Open the held-out text in a worker."""
        return TextJobs(self, job, context, ring)


class TextJobs:
    """Evaluations and samples; each that is asked for is taken on by one worker.

    What is done while training ends with it, and an evaluation takes `EVALUATING_PART` of a budget
    of time at most. After training both end when the supervisor says.
    """

    def __init__(self, text: Text, job: Job, context: Context, ring: records.Ring) -> None:
        """Open the held-out text."""
        self.text, self.job, self.context, self.ring = text, job, context, ring
        config, file = job.config, TokenFile.open(text.val)
        parameters = param_count(job.setup.model)
        self._sample_text = HeldOutText.of(file, config, parameters, config.eval_tokens)
        self._final_text = HeldOutText.of(file, config, parameters, evaluation.final_tokens(config))
        self._scores = evaluation.Scores(context.arena.segment(evaluation.SEGMENT))
        self._order = evaluation.spread(len(self._scores))
        self._final_round = 0

    def serve(self) -> None:
        """Evaluate, or write a sample, where that is asked for."""
        if takes_on(self.context, "eval_asked", "eval_taken"):
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
            kind=records.Kind.EVALUATION,
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
        tokenizer, pieces = self.text.tokenizer, []
        tokens = generate(
            self.context.backend,
            tokenizer.encode(SAMPLE_PROMPT.encode()),
            tokenizer=tokenizer,
            sampler=Sampler(temperature=0.8, seed=self.job.config.seed),
            max_new_tokens=SAMPLE_TOKENS,
        )
        for piece in stream_text(tokenizer, tokens):
            self.context.entry.beat()
            pieces.append(piece)
            if self._is_over():
                break
        with contextlib.suppress(EnvironmentLacks):  # a full disk costs a sample, not a worker
            Run(self.job.run_dir).append_sample(SAMPLE_PROMPT + "".join(pieces))
        self.ring.append(kind=records.Kind.SAMPLE, worker=self.job.slot, t_ns=monotonic_ns())
