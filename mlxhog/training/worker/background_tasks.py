"""The background tasks of a worker: evaluations and samples.

Each scored batch is a record in the worker's ring, for the supervisor (`evaluations.py`). During
training one worker claims a request and scores all batches, at its copy of the parameters. At the
end all workers share the batches, by the counter `eval_next`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from mlxhog.arena.control import EVAL_ROUND, ControlCommand, RecordKind, Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import WorkerPhase
from mlxhog.base.inside import OpenFolder
from mlxhog.checkpoint.run import Run
from mlxhog.data import validation_set
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import EnvironmentLacks
from mlxhog.models.families import param_count
from mlxhog.training.plan.job import Job
from mlxhog.training.plan.validation_subset import (
    ScoreSums,
    ValidationText,
    rows_of_batch,
    texts_of,
)

if TYPE_CHECKING:  # only workers load them
    from mlxhog.strategies.context import Context

SAMPLE_TOKENS = 160


def claims_task(context: Context, what: str) -> bool:
    """Claim an open "eval" or "sample" request of the supervisor; at most one worker gets each."""
    counters, taken = context.arena.counters, f"{what}_taken"
    n = counters.load(taken)
    if not (counters.load(f"{what}_asked") > n and counters.compare_exchange(taken, n, n + 1)):
        return False
    context.settle()  # a worker with a request holds no ticket (`Session.is_quiesced`)
    return True


class BackgroundTasks:
    """Evaluations and samples; one worker claims each request.

    During training both end with the training; after it, when the supervisor says so.
    """

    def __init__(self, job: Job, context: Context, ring: Ring, text: ValidationText) -> None:
        self.job, self.context, self.ring = job, context, ring
        self._val, self._tokenizer, self.part = text
        self._folder = OpenFolder(job.run_dir)
        self._counters, self._ended_round = context.arena.counters, 0
        self._of_run = job.config, param_count(job.plan.model)

    @cached_property
    def _texts(self) -> list[TokenFile]:
        return texts_of(self._val, *self._of_run, self.part.asked_bytes)

    def score(self, place: int) -> ScoreSums:
        """Score the batch at a place, at the parameters in the backend's parameter buffer."""
        file, rows = self._texts[0], rows_of_batch(*self._of_run)
        if place >= self.part.batches:
            file, place = self._texts[1], place - self.part.batches
        (batch,) = validation_set.batches(file, **rows, first=place, count=1)
        result = self.context.backend.evaluate(batch)
        return ScoreSums(result.nats, batch.n_bytes, result.targets)

    def serve(self) -> None:
        """Evaluate or write a sample on request.

        It evaluates only during training: all workers share the last evaluation (`evaluate_end`).
        """
        if self.context.training() and claims_task(self.context, "eval"):
            begin = self._counters.load("eval_next")
            self._score(range(begin, begin + self._counters.load("eval_end")))
        if claims_task(self.context, "sample"):
            self._sample()

    def evaluate_end(self) -> None:
        """Score batches of the validation text until the round is complete or its time is over."""
        if self._counters.load("eval_next") // EVAL_ROUND != self._ended_round:
            self._score(self._free_batches())

    def _free_batches(self) -> Iterator[int]:
        counters = self._counters
        while (number := counters.add("eval_next", 1)) % EVAL_ROUND < counters.load("eval_end"):
            yield number
        self._ended_round = number // EVAL_ROUND

    def _score(self, numbers: Iterable[int]) -> None:
        """Score batches; `numbers` are the claimed values of `eval_next`."""
        context, entry, copied_round, numbers = self.context, self.context.entry, -1, iter(numbers)
        while not self._is_over() and (number := next(numbers, None)) is not None:
            began_ns, (round_, place) = monotonic_ns(), divmod(number, EVAL_ROUND)
            if copied_round != round_:  # another round may score other parameters
                steps, copied_round = self._counters.load("steps"), round_
                context.copy_to_param_buffer()
            entry.beat(WorkerPhase.EVALUATE)
            score = self.score(place)
            self.ring.append(
                kind=RecordKind.EVALUATION,
                worker=self.job.slot,
                version=number,
                staleness=steps,
                t_ns=monotonic_ns(),
                **score._asdict(),
                compute_s=(monotonic_ns() - began_ns) / 1e9,
            )

    def _is_over(self) -> bool:
        """Whether a background task has to end; also gives a heartbeat."""
        context, counters = self.context, self._counters
        context.entry.beat()
        if context.training():
            return context.is_over()
        until_ns = counters.load("tasks_until_ns")
        is_asked_for = counters.load("command") in (ControlCommand.EVALUATE, ControlCommand.SAMPLE)
        return not is_asked_for or bool(until_ns and monotonic_ns() >= until_ns)

    def _sample(self) -> None:
        """Write a sample of text, as long as time allows."""
        from mlxhog.decoding.engine import answer
        from mlxhog.decoding.options import Sampling

        self.context.copy_to_param_buffer()
        self.context.entry.beat(WorkerPhase.SAMPLE)
        _, prompt = validation_set.beginning(self._val, self._tokenizer)
        most = self.job.plan.model.max_length  # 0: any length
        ids, texts = self._tokenizer.encode(prompt.encode())[: most // 2 or None], [prompt]
        length = min(SAMPLE_TOKENS, most - len(ids)) if most else SAMPLE_TOKENS
        for piece in answer(
            self.context.backend,
            [ids],
            tokenizer=self._tokenizer,
            sampling=Sampling(max_new_tokens=length, seed=self.job.config.seed),
        ):
            texts.append(piece.text)
            if self._is_over():
                break
        with contextlib.suppress(EnvironmentLacks):  # a full disk costs a sample, not a worker
            Run(self._folder.path).append_sample("".join(texts))
        self.ring.append(kind=RecordKind.SAMPLE, worker=self.job.slot, t_ns=monotonic_ns())
