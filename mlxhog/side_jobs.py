"""What a worker of a language model does beside its steps: evaluate held-out text, and sample."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from mlxhog import evaluation, records, strategies
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.control import EVAL_ROUND
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.decoding.generate import generate
from mlxhog.decoding.sampling import Sampler
from mlxhog.decoding.text import stream_text
from mlxhog.errors import EnvironmentLacks
from mlxhog.job import Job
from mlxhog.run import Run

SAMPLE_PROMPT = "The "
SAMPLE_TOKENS = 160


def takes_on(context: strategies.Context, asked: str, taken: str) -> bool:
    """Whether something is asked for that no other worker has taken on; at most one gets it.

    Args:
        context: the worker that asks.
        asked: counter of what the supervisor has asked for.
        taken: counter of what has been taken on.
    """
    counters = context.arena.counters
    done = counters.load(taken)
    return counters.load(asked) > done and counters.compare_exchange(taken, done, done + 1)


@dataclass(frozen=True)
class Text:
    """What evaluations and samples need beside the worker; picklable.

    Attributes:
        val: token file of held-out text.
        tokenizer: made the tokens.
        run_dir: gets the samples.
    """

    val: Path
    tokenizer: Tokenizer
    run_dir: Path

    def open(self, job: Job, context: strategies.Context, ring: records.Ring) -> TextJobs:
        """Open the held-out text in a worker."""
        return TextJobs(self, job, context, ring)


class TextJobs:
    """Evaluations and samples; each that is asked for is taken on by one worker."""

    def __init__(
        self, text: Text, job: Job, context: strategies.Context, ring: records.Ring
    ) -> None:
        """Open the held-out text."""
        self.text, self.job, self.context, self.ring = text, job, context, ring
        self._val = TokenFile.open(text.val)
        self._final_round = 0

    def serve(self) -> None:
        """See `SideJobs.serve`."""
        if takes_on(self.context, "eval_asked", "eval_taken"):
            self._evaluate()
        if takes_on(self.context, "sample_asked", "sample_taken"):
            self._sample()

    def _evaluate(self) -> None:
        """Evaluate a piece of the held-out text."""
        config, beat = self.job.config, self.context.entry.beat
        strategies.copy_to_inbox(self.context)
        beat(Phase.EVALUATE)
        score = evaluation.score_sample(self.context.backend, self._val, config, beat)
        self._record_score(score, round_=0, chunk=0)

    def evaluate_rest(self) -> None:
        """Evaluate chunks of the held-out text until none is left, in this round or a later one."""
        counters = self.context.arena.counters
        if counters.load("eval_next") // EVAL_ROUND == self._final_round:
            return
        config, beat = self.job.config, self.context.entry.beat
        beat(Phase.EVALUATE)
        chunks = evaluation.final_chunks(self._val, config)
        copied: int | None = None
        while True:
            self._final_round, chunk = divmod(counters.add("eval_next", 1), EVAL_ROUND)
            if chunk >= chunks:
                return
            if copied != self._final_round:  # another round may be of other parameters
                strategies.copy_to_inbox(self.context)
                copied = self._final_round
            score = evaluation.score_chunk(self.context.backend, self._val, config, chunk, beat)
            self._record_score(score, round_=self._final_round, chunk=chunk)

    def _record_score(self, score: evaluation.Score, *, round_: int, chunk: int) -> None:
        self.ring.append(
            kind=records.Kind.EVALUATION,
            worker=self.job.slot,
            version=self.context.arena.counters.load("version"),
            t_ns=monotonic_ns(),
            nats=score.nats,
            n_bytes=score.n_bytes,
            tokens=score.tokens,
            chunk=chunk,
            round=round_,
        )

    def _sample(self) -> None:
        """Write a sample of text beside the run."""
        strategies.copy_to_inbox(self.context)
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
        with contextlib.suppress(EnvironmentLacks):  # a full disk costs a sample, not a worker
            Run(self.text.run_dir).append_sample(SAMPLE_PROMPT + "".join(pieces))
        self.ring.append(kind=records.Kind.SAMPLE, worker=self.job.slot, t_ns=monotonic_ns())
