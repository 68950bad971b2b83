"""Tokens from a model, one at a time, with its recurrent state instead of a growing cache.

Prompts are read alone, each in pieces, since a recurrent state cannot look past padding; the
answers then go on together, one token of each at a time. A finished answer leaves and the next
prompt takes its place. No answer depends on the others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding.sampling import Sampler
from mlxhog.decoding.text import TextStream
from mlxhog.errors import ConfigError, DataError

State = TypeVar("State")

FinishReason = Literal["stop", "length", "document_end"]

PREFILL_CHUNK = 2048
"""A prompt is read in pieces of this length, so that memory stays flat however long it is."""

BATCH_SIZE = 16
"""Answers that go on together."""


class RecurrentModel(Protocol[State]):
    """What generation asks of a model; a `Backend` is one.

    The state is the backend's own; it is handed back unread.
    """

    def logits(
        self, tokens: NDArray[np.int32], state: State | None
    ) -> tuple[NDArray[np.float32], State]:
        """Read tokens (B, S), S >= 1, and return the logits (B, V) after the last, and a state."""
        ...

    def stack_states(self, states: Sequence[State]) -> State:
        """Return the states of several batches as one of all their rows."""
        ...

    def take_state(self, state: State, rows: Sequence[int]) -> State:
        """Return the state of some rows."""
        ...


@dataclass(frozen=True)
class Piece:
    """One more token of one answer.

    Attributes:
        row: which prompt it answers.
        token: the token; None where the document ended instead.
        text: what has become certain of the answer's text; the texts, joined, are the answer.
        finish_reason: why the answer ended here: at a stop string, at the allowed length, or at the
            end of the document; None where it goes on.
    """

    row: int
    token: int | None
    text: str
    finish_reason: FinishReason | None = None


def answer(
    model: RecurrentModel[State],
    prompts: Sequence[Sequence[int] | NDArray[np.int32]],
    *,
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    stop_at_document_end: bool = True,
    end_tokens: Collection[int] = (),
    batch_size: int = BATCH_SIZE,
    prefill_chunk: int = PREFILL_CHUNK,
) -> Iterator[Piece]:
    """Answer prompts of any lengths together, token by token.

    BOS goes before a prompt unless it is there: models are trained with it. Rows of the vocabulary
    that only pad it are never drawn. A drawn BOS is the end of the document. Each answer has random
    numbers of its own, and comes out the same whatever is answered beside it, up to the rounding of
    products whose shape differs.

    Args:
        model: the model.
        prompts: ids below `tokenizer.n_ids`; one may be empty.
        tokenizer: of the checkpoint.
        sampler: chooses among the logits; `of_row` makes one for each prompt.
        max_new_tokens: at most this many for each prompt, >= 0.
        stop: texts that end an answer and are no part of it.
        stop_at_document_end: stop at a drawn BOS; otherwise it is a token like others, and the text
            goes on with another document.
        end_tokens: other tokens that end the document, such as the EOS of a checkpoint.
        batch_size: answers that go on together, >= 1; each needs a state.
        prefill_chunk: tokens of a prompt that are read at once, >= 1. It changes memory and speed.

    Raises:
        DataError: an id of a prompt is outside the vocabulary.
        ConfigError: a number is out of its range, or a stop string is empty.
        Diverged: the model's logits are not finite.
    """
    # Checked here and not in the generator below, so that bad input is refused by the call.
    for name, value, low in (
        ("max_new_tokens", max_new_tokens, 0),
        ("batch_size", batch_size, 1),
        ("prefill_chunk", prefill_chunk, 1),
    ):
        if value < low:
            raise ConfigError(f"{name} is {value}, expected {low} or more")
    rows = [
        _Row(
            index,
            _checked(prompt, tokenizer, index if len(prompts) > 1 else None),
            tokenizer,
            sampler.of_row(index),
            TextStream(tokenizer, stop),
            max_new_tokens,
            {*end_tokens, tokenizer.bos} if stop_at_document_end else set(),
        )
        for index, prompt in enumerate(prompts)
    ]
    return _answer(model, deque(rows if max_new_tokens else ()), batch_size, prefill_chunk)


def generate(
    model: RecurrentModel[State],
    prompt: Sequence[int] | NDArray[np.int32],
    *,
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_new_tokens: int,
    stop_at_document_end: bool = True,
    prefill_chunk: int = PREFILL_CHUNK,
) -> Iterator[int]:
    """Yield new tokens after one prompt; arguments and errors as `answer`.

    A drawn BOS that ends the document is not yielded.
    """
    pieces = answer(
        model,
        [prompt],
        tokenizer=tokenizer,
        sampler=sampler,
        max_new_tokens=max_new_tokens,
        stop_at_document_end=stop_at_document_end,
        prefill_chunk=prefill_chunk,
    )
    return (piece.token for piece in pieces if piece.token is not None)


class _Row:
    """One answer that is being written."""

    def __init__(
        self,
        index: int,
        prompt: NDArray[np.int32],
        tokenizer: Tokenizer,
        sampler: Sampler,
        text: TextStream,
        max_new_tokens: int,
        ends: Collection[int],
    ) -> None:
        self.index, self.prompt, self.last = index, prompt, -1
        self._tokenizer, self._sampler, self._text = tokenizer, sampler, text
        self._remaining = max_new_tokens
        self._ends = ends
        self._occurred: NDArray[np.bool_] | None = None
        if sampler.repetition_penalty != 1:
            self._occurred = np.zeros((1, tokenizer.n_ids), np.bool_)
            self._occurred[0, prompt] = True

    def draw(self, logits: NDArray[np.float32]) -> Piece:
        """Choose the next token from logits (1, V)."""
        token = int(self._sampler(logits[:, : self._tokenizer.n_ids], self._occurred)[0])
        if token in self._ends:
            return Piece(self.index, None, self._text.end(), "document_end")
        if self._occurred is not None:
            self._occurred[0, token] = True
        self.last, self._remaining = token, self._remaining - 1
        text = self._text.read(token)
        if not self._text.stopped and not self._remaining:
            text += self._text.end()  # which may hold a stop string after all
        if self._text.stopped:
            return Piece(self.index, token, text, "stop")
        return Piece(self.index, token, text, None if self._remaining else "length")


def _answer(
    model: RecurrentModel[State], waiting: deque[_Row], batch_size: int, prefill_chunk: int
) -> Iterator[Piece]:
    rows: list[_Row] = []
    states: list[State] = []  # of `rows`, in their order, in one or several parts
    while waiting or rows:
        while waiting and len(rows) < batch_size:
            row = waiting.popleft()
            logits, state = _read(model, row.prompt, prefill_chunk)
            piece = row.draw(logits)
            yield piece
            if piece.finish_reason is None:
                rows.append(row)
                states.append(state)
        if not rows:
            continue
        together = states[0] if len(states) == 1 else model.stack_states(states)
        last = np.array([[row.last] for row in rows], np.int32)
        logits, together = model.logits(last, together)
        going_on = []
        for j, row in enumerate(rows):
            piece = row.draw(logits[j : j + 1])
            yield piece
            if piece.finish_reason is None:
                going_on.append(j)
        if 0 < len(going_on) < len(rows):
            together = model.take_state(together, going_on)
        rows = [rows[j] for j in going_on]
        states = [together] if rows else []


def _read(
    model: RecurrentModel[State], prompt: NDArray[np.int32], chunk: int
) -> tuple[NDArray[np.float32], State]:
    """Read a prompt (S,), S >= 1; return the logits (1, V) after it, and the state."""
    state: State | None = None
    for start in range(0, len(prompt), chunk):
        logits, state = model.logits(prompt[None, start : start + chunk], state)
    assert state is not None
    return logits, state


def _checked(
    prompt: Sequence[int] | NDArray[np.int32], tokenizer: Tokenizer, index: int | None
) -> NDArray[np.int32]:
    """Return the prompt as (S,) int32 with BOS first, S >= 1."""
    ids = np.asarray(prompt, dtype=np.int64).reshape(-1)
    outside = np.flatnonzero((ids < 0) | (ids >= tokenizer.n_ids))
    if outside.size:
        at = int(outside[0])
        of = "" if index is None else f" of prompt {index + 1}"
        raise DataError(
            f"prompt token {ids[at]} at position {at}{of} is outside the vocabulary of "
            f"{tokenizer.n_ids} ids; encode the prompt with the checkpoint's own tokenizer"
        )
    if not ids.size or ids[0] != tokenizer.bos:
        ids = np.concatenate([[tokenizer.bos], ids])
    return np.ascontiguousarray(ids, dtype=np.int32)


@dataclass
class Answer:
    """One answer as far as it is written.

    Attributes:
        ids: its tokens, without the one that ends a document.
        pieces: its text, without a stop string, in the pieces it came in.
        finish_reason: why it ended; None while it goes on.
        ttft_s: seconds from the start of all answers to its first token; None before that.
    """

    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    ttft_s: float | None = None

    @property
    def text(self) -> str:
        """Its text so far."""
        return "".join(self.pieces)


class Answers:
    """Collects `Piece`s and measures their pace. The clock starts when this is made.

    Args:
        count: how many answers there will be.
        clock: seconds, monotonic.
    """

    def __init__(self, count: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.rows = [Answer() for _ in range(count)]
        self._clock = clock
        self._start = self._last = clock()
        self._first: float | None = None

    def follow(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield the pieces unchanged, and record each."""
        for piece in pieces:
            row, self._last = self.rows[piece.row], self._clock()
            if self._first is None:
                self._first = self._last
            if row.ttft_s is None:
                row.ttft_s = self._last - self._start
            if piece.token is not None:
                row.ids.append(piece.token)
            row.pieces.append(piece.text)
            row.finish_reason = piece.finish_reason
            yield piece

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def seconds(self) -> float:
        """From the start to the last token."""
        return self._last - self._start

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token of all, the reading of its prompt included."""
        return None if self._first is None else self._first - self._start

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second after the first one; None where there is no second."""
        if self._first is None or self.tokens < 2 or self._last <= self._first:
            return None
        return (self.tokens - 1) / (self._last - self._first)
