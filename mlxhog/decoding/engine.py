"""Continuous batching: several answers decode together, and requests can come at any time.

Each prompt is prefilled alone, in chunks, because a recurrent state cannot skip padding. Between
two chunks every running answer gets one token, so a long prompt delays the other answers by one
chunk at most. When an answer ends, the next prompt takes its place. No answer depends on the
answers beside it.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlxhog.backends.inference import InferenceModel, State
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding.options import Sampling
from mlxhog.decoding.sampling import TokenSampler, check_finite
from mlxhog.decoding.text import TextStream
from mlxhog.errors import DataError

Int32 = NDArray[np.int32]

FinishReason = Literal["stop", "length", "document_end"]

PREFILL_CHUNK = 2048
"""Tokens per chunk of a prompt; so memory does not grow with the length of the prompt."""

MIN_LOGPROB = -9999.0
"""Reported for a probability of 0, whose logarithm JSON does not have."""

BATCH_SIZE = 16
"""Number of answers that decode together."""


@dataclass(frozen=True)
class TokenScore:
    """The model's probability of a token, before temperature and filters."""

    token: int
    logprob: float | None  # None for the first token that the model reads
    top: Mapping[int, float]  # logprobs of the most likely tokens, in descending order


@dataclass(frozen=True)
class Piece:
    """One token of one answer."""

    row: int  # number of the request, from `DecodingEngine.submit`
    token: int | None  # the token; None at the end of a document
    text: str  # text that is now final; the texts, joined, are the answer
    finish_reason: FinishReason | None = None  # why the answer ends here; None if it continues
    scores: tuple[TokenScore, ...] = ()  # of the token, if requested; before it the prompt's


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A request for an answer."""

    prompt: Sequence[int] | Int32  # ids below the tokenizer's `n_ids`; may be empty
    sampling: Sampling
    row: int = 0  # number among several answers with the same options; see `TokenSampler`
    stop_ids: Collection[int] = ()  # tokens that end the document and the answer
    top: int | None = None  # most likely tokens in the score of each token; None: no scores
    scores_prompt: bool = False  # whether tokens of the prompt get scores, too
    generates: bool = True  # whether an answer is generated; else the prompt is only scored


class DecodingEngine:
    """Prefills prompts and decodes their answers, one token of each per step.

    Args:
        model: the model. Its parameters may change between two steps.
        tokenizer: tokenizer of the checkpoint.
        batch_size: number of answers that decode together, >= 1; each needs a state.
        prefill_chunk: tokens per chunk of a prompt, >= 1. It changes memory, speed, and the latency
            of the other answers.

    Concurrency: for the thread that may call the model.
    """

    def __init__(
        self, model: InferenceModel, tokenizer: Tokenizer, *, batch_size: int = BATCH_SIZE,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:  # fmt: skip
        self._model, self._tokenizer = model, tokenizer
        self._batch_size, self._prefill_chunk = batch_size, prefill_chunk
        self.admits = True  # whether waiting requests can start
        self._n_requests = 0
        self.clear()

    def clear(self) -> None:
        """Drop every unfinished answer."""
        self._waiting: deque[_Row] = deque()
        self._prefilling: deque[_Row] = deque()
        self._decoding: list[_Row] = []
        self._state: State = None  # of `_decoding`, in its order

    @property
    def n_waiting(self) -> int:
        """Number of waiting requests."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Number of answers in progress, in prefill or decoding."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def is_busy(self) -> bool:
        """Whether there is an answer in progress or a waiting request."""
        return bool(self._waiting or self.n_running)

    def submit(self, request: GenerationRequest) -> int:
        """Add a request; returns its number, from 0, which its pieces have as `row`.

        BOS is added before the prompt unless it begins with BOS: models are trained with it.

        Raises:
            DataError: an id of the prompt is outside the vocabulary.
        """
        prompt = checked_ids(request.prompt, self._tokenizer)
        if not prompt.size or prompt[0] != self._tokenizer.bos:
            prompt = np.concatenate([[self._tokenizer.bos], prompt])
        row = _Row(self._n_requests, request, prompt.astype(np.int32), self._tokenizer)
        self._waiting.append(row)
        self._n_requests += 1
        return row.index

    def cancel(self, index: int) -> None:
        """Stop an answer in any phase; no effect on one that has ended or does not exist."""
        for prompts in (self._waiting, self._prefilling):
            for row in [row for row in prompts if row.index == index]:
                prompts.remove(row)
        others = [j for j, row in enumerate(self._decoding) if row.index != index]
        if len(others) < len(self._decoding):
            self._select_rows(others)

    def step(self) -> list[Piece]:
        """Prefill a chunk of a prompt, or several short prompts, and decode a token per answer.

        Raises:
            Diverged: the model's logits are not finite; call `clear` before another step.
        """
        return [*self._prefill(), *self._decode()]

    def _prefill(self) -> list[Piece]:
        """Read prompts round-robin, and sample the first token after each."""
        pieces, n_read = [], 0
        while n_read < self._prefill_chunk:
            while self.admits and self._waiting and self.n_running < self._batch_size:
                self._prefilling.append(self._waiting.popleft())
            if not self._prefilling:
                break
            row = self._prefilling.popleft()
            # Prompts are always cut at the same places, so an answer does not depend on the others.
            part, row.unread = np.split(row.unread, [self._prefill_chunk])
            if row.request.scores_prompt:
                every, row.state = self._model.all_logits(part[None], row.state)
                row.score_prompt(part, every[0, :, : self._tokenizer.n_ids])
                logits = every[:, -1]
            else:
                logits, row.state = self._model.logits(part[None], row.state)
            n_read += len(part)
            if row.unread.size:
                self._prefilling.append(row)
                continue
            if row.request.generates:
                (piece,) = self._sample([row], logits)
            else:
                piece = Piece(row.index, None, "", "length", row.pop_scores())
            pieces.append(piece)
            if piece.finish_reason is None:
                before = [self._state] if self._decoding else []
                self._state = self._model.stack_states([*before, row.state])
                self._decoding.append(row)
                row.state = None  # now part of the batch's
        return pieces

    def _decode(self) -> list[Piece]:
        """Decode one token of every answer whose prompt is read."""
        rows = self._decoding
        if not rows:
            return []
        last = np.array([[row.last] for row in rows], np.int32)
        logits, self._state = self._model.logits(last, self._state)
        pieces = self._sample(rows, logits)
        unfinished = [j for j, piece in enumerate(pieces) if piece.finish_reason is None]
        if len(unfinished) < len(rows):
            self._select_rows(unfinished)
        return pieces

    def _sample(self, rows: "Sequence[_Row]", logits: NDArray[np.float32]) -> list[Piece]:
        """Sample the next token of each row from logits (B, V)."""
        logits = logits[:, : self._tokenizer.n_ids]
        # All are sampled before one is appended: an error leaves no answer with more than others.
        tokens = [row.sampler(own, row.seen_tokens) for row, own in zip(rows, logits, strict=True)]
        for row, token, own in zip(rows, tokens, logits, strict=True):
            if row.request.top is not None:
                row.scores.append(_score(token, own, row.request.top))
        return [row.append(token) for row, token in zip(rows, tokens, strict=True)]

    def _select_rows(self, places: Sequence[int]) -> None:
        """Drop all answers of `_decoding` except those at these places."""
        self._state = self._model.select_state(self._state, places) if places else None
        self._decoding = [self._decoding[j] for j in places]


class _Row:
    """One answer: the unread part of its prompt, and its sampler."""

    def __init__(
        self, index: int, request: GenerationRequest, prompt: Int32, tokenizer: Tokenizer
    ) -> None:
        self.index, self.request, self.unread, self.last = index, request, prompt, -1
        self.state: State = None
        self.n_written = 0
        self.scores: list[TokenScore] = []
        self._before: NDArray[np.float32] | None = None  # logits after the last scored token
        self._bos_added = prompt.size != len(request.prompt)
        self.sampler = TokenSampler(request.sampling, request.row)
        self._text = TextStream(tokenizer, request.sampling.stop)
        self.seen_tokens: NDArray[np.bool_] | None = None
        if request.sampling.repetition_penalty != 1:
            self.seen_tokens = np.zeros(tokenizer.n_ids, np.bool_)
            self.seen_tokens[prompt] = True

    def score_prompt(self, part: Int32, logits: NDArray[np.float32]) -> None:
        """Add the scores of a chunk of the prompt, from the logits (S, V) after its tokens."""
        check_finite(logits.max(axis=-1))
        before = self._before
        for token, after in zip(part.tolist(), logits, strict=True):
            if self._bos_added:
                self._bos_added = False
            elif before is None:
                self.scores.append(TokenScore(token, None, {}))
            else:
                self.scores.append(_score(token, before, self.request.top or 0))
            before = after
        self._before = logits[-1].copy()  # alone, not the chunk's

    def pop_scores(self) -> tuple[TokenScore, ...]:
        """Return the scores since the last call."""
        scores, self.scores = tuple(self.scores), []
        return scores

    def append(self, token: int) -> Piece:
        """Append a sampled token to the answer."""
        reason: FinishReason | None = "document_end"
        if is_stop := token in self.request.stop_ids:
            text = self._text.end()
        else:
            if self.seen_tokens is not None:
                self.seen_tokens[token] = True
            self.last = token
            self.n_written += 1
            is_last = self.n_written == self.request.sampling.max_new_tokens
            text = self._text.read(token)
            if not self._text.stopped and is_last:
                text += self._text.end()  # which may contain a stop string
            reason = "stop" if self._text.stopped else "length" if is_last else None
        return Piece(self.index, None if is_stop else token, text, reason, self.pop_scores())


def _score(token: int, logits: NDArray[np.float32], top: int) -> TokenScore:
    """Return the score of a token under logits (V,), the largest of which is finite."""
    logprobs = logits - logits.max()
    logprobs = logprobs - np.log(np.exp(logprobs).sum(dtype=np.float64))
    top = min(top, len(logprobs))
    best = np.argpartition(-logprobs, top - 1)[:top] if top else np.empty(0, np.intp)
    best = best[np.argsort(-logprobs[best], kind="stable")]

    def reported(one: int) -> float:
        return max(float(logprobs[one]), MIN_LOGPROB)

    return TokenScore(token, reported(token), {one: reported(one) for one in best.tolist()})


def checked_ids(prompt: Sequence[int] | Int32, tokenizer: Tokenizer) -> Int32:
    """Return the ids of a prompt as (S,) int32.

    Raises:
        DataError: an id is outside the vocabulary of the tokenizer, that of the checkpoint.
    """
    ids = np.asarray(prompt, dtype=np.int64).reshape(-1)
    outside = np.flatnonzero((ids < 0) | (ids >= tokenizer.n_ids))
    if outside.size:
        at = int(outside[0])
        raise DataError(
            f"prompt token {ids[at]} at position {at} is outside the vocabulary of "
            f"{tokenizer.n_ids} ids; encode the prompt with the checkpoint's own tokenizer"
        )
    return ids.astype(np.int32)


def answer(
    model: InferenceModel, prompts: Sequence[Sequence[int] | Int32], *, tokenizer: Tokenizer,
    sampling: Sampling, stop_ids: Collection[int] | None = None, batch_size: int = BATCH_SIZE,
    prefill_chunk: int = PREFILL_CHUNK, before_step: Callable[[], object] = lambda: None,
) -> Iterator[Piece]:  # fmt: skip
    """Answer prompts of any lengths together, token by token.

    Padding of the vocabulary is never sampled. Each answer has its own random numbers and does not
    depend on the other answers, up to rounding in matmuls of different shapes. It ends at one of
    `stop_ids`, by default BOS. `before_step` is called before each token; it may change the
    parameters.

    Raises:
        DataError, Diverged: as of `DecodingEngine`.
    """
    engine = DecodingEngine(model, tokenizer, batch_size=batch_size, prefill_chunk=prefill_chunk)
    stop_ids = (tokenizer.bos,) if stop_ids is None else stop_ids
    for index, prompt in enumerate(prompts):
        engine.submit(
            GenerationRequest(prompt=prompt, sampling=sampling, row=index, stop_ids=stop_ids)
        )

    def pieces() -> Iterator[Piece]:
        while engine.is_busy:
            before_step()
            yield from engine.step()

    return pieces()
