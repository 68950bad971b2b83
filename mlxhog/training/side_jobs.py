"""The side jobs of a worker, evaluations and samples, and the validation text that they score.

All evaluations of a run score the same part of the validation text (`data.validation_set`), and
`validation bits per byte` always refers to that part. At the end workers score a larger part, too,
whose score is a separate number. Both sizes follow from the options alone, whatever the budget.

Each scored batch is a record in the worker's ring, for the supervisor (`evaluation.py`). During
training one worker takes on a request and scores all batches, at its copy of the parameters. At the
end all workers share the batches, by the counter `eval_next`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from mlxhog.arena.control import EVAL_ROUND, ControlCommand, RecordKind, Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import WorkerPhase
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import EMULATED, TrainConfig
from mlxhog.data import validation_set
from mlxhog.data.prepare import Prepared
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import EnvironmentLacks
from mlxhog.models.families import param_count
from mlxhog.training.job import Job

if TYPE_CHECKING:  # only workers load them
    from mlxhog.strategies.context import Context

PART_FLOPS, LARGER_FLOPS = 1e12, 2e12
"""Most work to score the part and the larger text: 10 s and 20 s of two CPU cores."""
EMULATED_SHARE = 0.01  # of these, for emulated models, which are slow
LARGER_TOKENS = 2_000_000
MIN_BYTES = 1024
SAMPLE_TOKENS = 160


class ScoreSums(NamedTuple):
    """Sums over a piece of validation text: nats of its labels, bytes of text, labels."""

    nats: float
    n_bytes: int
    tokens: int

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""
        return validation_set.bits_per_byte(self.nats, self.n_bytes)


@dataclass(frozen=True)
class ValidationSubset:
    """The part of the validation text that all evaluations of a run score, as run.json has it."""

    asked_bytes: int  # its size, as `validation_set.part` takes it
    text: str  # its name; scores of the same text have the same name
    n_bytes: int  # of text, prompts of examples included
    share: float  # of all validation text, up to 1
    batches: int
    all_batches: int  # with those of the larger final score
    larger_share: float  # of all validation text, in the larger final score; 0 without it
    tokens: int

    @classmethod
    def of(
        cls, data: Prepared, config: TrainConfig, parameters: int, asked_bytes: int | None = None
    ) -> ValidationSubset:
        """Choose the part, or take the size that a resumed run had before."""
        file = data.val
        if asked_bytes is None or config.val_subset_tokens is not None:
            asked_bytes = choose_bytes(config, parameters, file)
        texts = texts_of(file, config, parameters, asked_bytes)
        n_batches = [validation_set.n_batches(one, **_rows(config, parameters)) for one in texts]
        n_bytes = [one.header["bytes"] for one in texts]
        is_all, whole = texts[0] is file, file.header["bytes"]
        return cls(
            asked_bytes=asked_bytes,
            text=validation_set.part_name(
                data.corpus_sha256, data.rule, None if is_all else asked_bytes
            ),
            n_bytes=n_bytes[0],
            share=n_bytes[0] / whole,
            batches=n_batches[0],
            all_batches=sum(n_batches),
            larger_share=sum(n_bytes[1:]) / whole,
            tokens=texts[0].n_tokens,
        )


def texts_of(
    file: TokenFile, config: TrainConfig, parameters: int, asked_bytes: int
) -> list[TokenFile]:
    """The part of all evaluations and, if it is larger, the text of the last one.

    That is all validation text, or as much as `LARGER_FLOPS` score.
    """
    part = validation_set.part(file, asked_bytes)
    tokens = min(_max_tokens(LARGER_FLOPS, config, parameters), LARGER_TOKENS)
    n_bytes = tokens * file.header["bytes"] // file.n_tokens
    is_alone = part is file or n_bytes <= asked_bytes
    return [part] if is_alone else [part, validation_set.part(file, n_bytes)]


def _rows(config: TrainConfig, parameters: int) -> dict[str, int]:
    rows = validation_set.rows_of_batch(parameters, config.seq_len)
    return {"seq_len": config.seq_len, "batch_size": rows}


def choose_bytes(config: TrainConfig, parameters: int, file: TokenFile) -> int:
    """Return the bytes of the validation subset of a new run.

    It is `validation_set.PART_BYTES` unless `val_subset_tokens` sets another size. For a
    large model it is halved until scoring takes at most `PART_FLOPS`, or to `MIN_BYTES`.
    """
    if config.val_subset_tokens is not None:
        labels, text_bytes = file.n_tokens - file.header["documents"], int(file.header["bytes"])
        return max(1, round(config.val_subset_tokens * text_bytes / max(int(labels), 1)))
    n_bytes, most = validation_set.PART_BYTES, _max_tokens(PART_FLOPS, config, parameters)
    while n_bytes > MIN_BYTES and n_bytes > most:
        n_bytes //= 2
    return n_bytes


def _max_tokens(flops: float, config: TrainConfig, parameters: int) -> int:
    """Tokens that some work scores, at two operations per parameter and token."""
    return int(flops * (EMULATED_SHARE if config.kernels == EMULATED else 1.0) / (2 * parameters))


# -- in a worker ---------------------------------------------------------------------------------


def takes_on(context: Context, what: str) -> bool:
    """Take on an open "eval" or "sample" of the supervisor. At most one worker gets each."""
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
        self, val: TokenFile, tokenizer: Tokenizer, part: ValidationSubset,
        job: Job, context: Context, ring: Ring,
    ) -> None:  # fmt: skip
        """Prepare to score validation text, and first a part of it."""
        self.job, self.context, self.ring = job, context, ring
        self._val, self._tokenizer, self.part = val, tokenizer, part
        self._counters, self._ended_round = context.arena.counters, 0

    @cached_property
    def _texts(self) -> list[TokenFile]:
        parameters = param_count(self.job.plan.model)
        return texts_of(self._val, self.job.config, parameters, self.part.asked_bytes)

    def score(self, place: int) -> ScoreSums:
        """Score the batch at a place, at the parameters in the backend's inbox."""
        file, rows = self._texts[0], _rows(self.job.config, param_count(self.job.plan.model))
        if place >= self.part.batches:
            file, place = self._texts[1], place - self.part.batches
        (batch,) = validation_set.batches(file, **rows, first=place, count=1)
        result = self.context.backend.evaluate(batch)
        return ScoreSums(result.nats, batch.n_bytes, result.targets)

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
        """Score batches of the validation text until the round is complete or its time is over."""
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
        """Whether a side job has to end; also a sign of life."""
        context, counters = self.context, self._counters
        context.entry.beat()
        if context.training():
            return context.is_over()
        until_ns = counters.load("side_until_ns")
        is_asked_for = counters.load("command") in (ControlCommand.EVALUATE, ControlCommand.SAMPLE)
        return not is_asked_for or bool(until_ns and monotonic_ns() >= until_ns)

    def _sample(self) -> None:
        """Write a sample of text, as long as time allows."""
        from mlxhog.decoding.engine import answer
        from mlxhog.decoding.options import Sampling

        self.context.copy_to_inbox()
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
            Run(self.job.run_dir).append_sample("".join(texts))
        self.ring.append(kind=RecordKind.SAMPLE, worker=self.job.slot, t_ns=monotonic_ns())
