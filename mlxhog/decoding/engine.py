"""Write several answers together, one token of each at a time, while requests come and go.

A prompt is read alone, in pieces, since a recurrent state cannot look past padding. Between two of
its pieces every answer that is being written gets one more token, so a long prompt holds nobody up
for longer than a piece. An answer that ends leaves its place to the next prompt. No answer depends
on what is written beside it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding.sampling import Sampler, draw_each
from mlxhog.decoding.text import TextStream
from mlxhog.errors import ConfigError, DataError

State = TypeVar("State")
Int32 = NDArray[np.int32]

FinishReason = Literal["stop", "length", "document_end"]

PREFILL_CHUNK = 2048
"""A prompt is read in pieces of this length, so that memory stays flat however long it is."""

BATCH_SIZE = 16
"""Answers that go on together."""


class RecurrentModel(Protocol[State]):
    """What generation asks of a model; a `Backend` is one.

    The state is the backend's own; it is handed back unread.
    """

    def logits(self, tokens: Int32, state: State | None) -> tuple[NDArray[np.float32], State]:
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
        row: which request it answers: what `Engine.submit` returned.
        token: the token; None where the document ended instead.
        text: what has become certain of the answer's text; the texts, joined, are the answer.
        finish_reason: why the answer ended here: at a stop string, at the allowed length, or at the
            end of the document; None where it goes on.
    """

    row: int
    token: int | None
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an answer is asked for with.

    Attributes:
        prompt: ids below the tokenizer's `n_ids`; may be empty.
        sampler: chooses among the logits; for this answer alone.
        max_new_tokens: at most this many, >= 1.
        stop: texts that end the answer and are no part of it.
        ends: tokens that end the document, and with it the answer.
        session: name of the conversation that the prompt goes on with and the answer belongs to.
    """

    prompt: Sequence[int] | Int32
    sampler: Sampler
    max_new_tokens: int
    stop: Sequence[str] = ()
    ends: Collection[int] = ()
    session: str | None = None


@dataclass(frozen=True)
class Session(Generic[State]):
    """A conversation as far as it goes: of constant size, however long, for a recurrent model.

    Attributes:
        state: after the tokens that were read.
        unread: tokens that belong to it and come before the next prompt.
        n_tokens: how many it has, those included.
    """

    state: State
    unread: Int32
    n_tokens: int


class Engine(Generic[State]):
    """Reads prompts and writes their answers, a token of each per step.

    Args:
        model: the model. Its parameters may change between two steps.
        tokenizer: of the checkpoint.
        batch_size: answers that go on together, >= 1; each needs a state.
        prefill_chunk: tokens of a prompt that are read at once, >= 1. It changes memory and speed,
            and how long the other answers wait.
        most_sessions: sessions that are kept; beyond, the one that was used longest ago goes.

    Attributes:
        admits: whether requests that wait get places.

    Raises:
        ConfigError: a number is out of its range.

    Concurrency: for the thread that may call the model.
    """

    def __init__(
        self,
        model: RecurrentModel[State],
        tokenizer: Tokenizer,
        *,
        batch_size: int = BATCH_SIZE,
        prefill_chunk: int = PREFILL_CHUNK,
        most_sessions: int = 0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("prefill_chunk", prefill_chunk)):
            at_least(name, value, 1)
        self._model, self._tokenizer = model, tokenizer
        self._batch_size, self._prefill_chunk = batch_size, prefill_chunk
        self._most_sessions = most_sessions
        self.admits = True
        self._sessions: OrderedDict[str, Session[State]] = OrderedDict()
        self._in_session: set[str] = set()
        self._n_requests = 0
        self.clear()

    def clear(self) -> None:
        """Forget every answer that has not ended; sessions stay as they were before it."""
        self._waiting: deque[_Row[State]] = deque()
        self._reading: deque[_Row[State]] = deque()  # whose prompts are not read to their end
        self._writing: list[_Row[State]] = []
        self._states: list[State] = []  # of `_writing`, in order, in one or several parts
        self._in_session.clear()

    @property
    def n_waiting(self) -> int:
        """Requests that have no place yet."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Answers whose prompts are being read, or that are being written."""
        return len(self._reading) + len(self._writing)

    @property
    def n_sessions(self) -> int:
        """Sessions that are kept."""
        return len(self._sessions)

    @property
    def is_busy(self) -> bool:
        """Whether another step has something to do."""
        return bool(self._waiting or self.n_running)

    def session(self, name: str) -> Session[State] | None:
        """Return a session, or None where there is none, or none any more."""
        return self._sessions.get(name)

    def submit(self, request: Request) -> int:
        """Take a request on; returns the number that its pieces bear, counted from 0.

        BOS goes before the prompt unless it is there, or a session goes on: models are trained with
        it.

        Raises:
            DataError: an id of the prompt is outside the vocabulary.
            ConfigError: max_new_tokens is below 1, a stop string is empty, or the session is being
                written in by another request.
        """
        at_least("max_new_tokens", request.max_new_tokens, 1)
        prompt, name = checked_ids(request.prompt, self._tokenizer), request.session
        session = None if name is None else self.session(name)
        if session is not None:
            prompt = np.concatenate([session.unread, prompt])
        elif not prompt.size or prompt[0] != self._tokenizer.bos:
            prompt = np.concatenate([[self._tokenizer.bos], prompt])
        if not prompt.size:  # nothing said after the end of a document
            prompt = np.array([self._tokenizer.bos])
        row = _Row(self._n_requests, request, prompt.astype(np.int32), self._tokenizer, session)
        if name is not None:
            if name in self._in_session:
                raise ConfigError(
                    f"session {name!r} is still being answered; wait for that answer, or begin "
                    "another session"
                )
            self._in_session.add(name)
        self._waiting.append(row)
        self._n_requests += 1
        return row.index

    def cancel(self, index: int) -> None:
        """Stop an answer, wherever it is; one that has ended, or never was, is no error.

        Its session stays as it was before the request.
        """
        for rows in (self._waiting, self._reading):
            for row in rows:
                if row.index == index:
                    rows.remove(row)
                    self._in_session.discard(row.request.session or "")
                    return
        staying = [j for j, row in enumerate(self._writing) if row.index != index]
        if len(staying) < len(self._writing):
            (row,) = (one for one in self._writing if one.index == index)
            self._in_session.discard(row.request.session or "")
            self._go_on_with(staying)

    def step(self) -> list[Piece]:
        """Read a piece of a prompt, or several short ones, and write a token of every answer.

        Raises:
            Diverged: the model's logits are not finite; call `clear` before another step.
        """
        return [*self.read(), *self.write()]

    def read(self) -> list[Piece]:
        """Do the first half of a step: prompts in turns; the first token of those read to the end.

        Raises:
            Diverged: see `step`.
        """
        pieces, n_read = [], 0
        while n_read < self._prefill_chunk:
            while self.admits and self._waiting and self.n_running < self._batch_size:
                self._reading.append(self._waiting.popleft())
            if not self._reading:
                break
            row = self._reading.popleft()
            # Where a prompt is cut depends on nothing but its length, and so does its answer.
            part, row.unread = np.split(row.unread, [self._prefill_chunk])
            logits, row.state = self._model.logits(part[None], row.state)
            n_read += len(part)
            if row.unread.size:
                self._reading.append(row)
                continue
            (piece,) = self._draw([row], logits)
            pieces.append(piece)
            if piece.finish_reason is None:
                self._writing.append(row)
                self._states.append(row.state)
                if row.request.session is None:
                    row.state = None  # it goes on in `_states`
            else:
                self._keep(row, piece, row.state)
        return pieces

    def write(self) -> list[Piece]:
        """Do the second half of a step: one token of every answer whose prompt is read.

        Raises:
            Diverged: see `step`.
        """
        if not self._writing:
            return []
        rows = self._writing
        together = self._together()
        last = np.array([[row.last] for row in rows], np.int32)
        logits, together = self._model.logits(last, together)
        self._states = [together]
        pieces, going_on = self._draw(rows, logits), []
        for j, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            if piece.finish_reason is None:
                going_on.append(j)
            elif row.request.session is not None:
                self._keep(row, piece, self._model.take_state(together, [j]))
        if len(going_on) < len(rows):
            self._go_on_with(going_on)
        return pieces

    def _draw(self, rows: Sequence[_Row[State]], logits: NDArray[np.float32]) -> list[Piece]:
        """Choose the next token of each row from logits (B, V)."""
        samplers = [row.request.sampler for row in rows]
        occurred = [row.occurred for row in rows]
        tokens = draw_each(samplers, logits[:, : self._tokenizer.n_ids], occurred)
        return [row.take(token) for row, token in zip(rows, tokens.tolist(), strict=True)]

    def _together(self) -> State:
        states = self._states
        return states[0] if len(states) == 1 else self._model.stack_states(states)

    def _go_on_with(self, places: Sequence[int]) -> None:
        """Keep the answers at some places of `_writing` alone."""
        self._states = [self._model.take_state(self._together(), places)] if places else []
        self._writing = [self._writing[j] for j in places]

    def _keep(self, row: _Row[State], last: Piece, state: State) -> None:
        """Put an answer that has ended into its session, with the state that has read it."""
        name, unread = row.request.session, np.empty(0, np.int32)
        if name is None:
            return
        self._in_session.discard(name)
        if last.finish_reason == "stop":
            # The model has read the stop string, and the answer ends before it.
            assert row.state is not None
            state, unread = row.state, self._tokenizer.encode("".join(row.texts).encode())
        elif last.token is not None:
            unread = np.array([last.token], np.int32)
        n_tokens = row.n_before + (len(unread) if last.finish_reason == "stop" else row.n_written)
        self._sessions[name] = Session(state, unread, n_tokens)
        self._sessions.move_to_end(name)
        while len(self._sessions) > self._most_sessions:
            self._sessions.popitem(last=False)


class _Row(Generic[State]):
    """One answer: its prompt, as far as it is not read, and what draws its tokens."""

    def __init__(
        self,
        index: int,
        request: Request,
        prompt: Int32,
        tokenizer: Tokenizer,
        session: Session[State] | None,
    ) -> None:
        self.index, self.request, self.unread, self.last = index, request, prompt, -1
        self.state = None if session is None else session.state
        self.n_before = len(prompt)  # tokens of the session that come before the answer
        if session is not None:
            self.n_before += session.n_tokens - len(session.unread)
        self.n_written = 0
        self.texts: list[str] = []
        self._text = TextStream(tokenizer, request.stop)
        self.occurred: NDArray[np.bool_] | None = None
        if request.sampler.repetition_penalty != 1:
            self.occurred = np.zeros((1, tokenizer.n_ids), np.bool_)
            self.occurred[0, prompt] = True

    def take(self, token: int) -> Piece:
        """Go on with a token that was drawn."""
        piece = self._piece(token)
        if self.request.session is not None:
            self.texts.append(piece.text)
        return piece

    def _piece(self, token: int) -> Piece:
        if token in self.request.ends:
            return Piece(self.index, None, self._text.end(), "document_end")
        if self.occurred is not None:
            self.occurred[0, token] = True
        self.last = token
        self.n_written += 1
        is_last = self.n_written == self.request.max_new_tokens
        text = self._text.read(token)
        if not self._text.stopped and is_last:
            text += self._text.end()  # which may hold a stop string after all
        if self._text.stopped:
            return Piece(self.index, token, text, "stop")
        return Piece(self.index, token, text, "length" if is_last else None)


def at_least(name: str, value: int, low: int) -> None:
    """Check a number.

    Raises:
        ConfigError: it is less than `low`.
    """
    if value < low:
        raise ConfigError(f"{name} is {value}, expected {low} or more")


def checked_ids(
    prompt: Sequence[int] | Int32, tokenizer: Tokenizer, number: int | None = None
) -> Int32:
    """Return the ids of a prompt as (S,) int32.

    Args:
        prompt: ids.
        tokenizer: of the checkpoint.
        number: of the prompt among several, counted from 1, for the message.

    Raises:
        DataError: one is outside the vocabulary.
    """
    ids = np.asarray(prompt, dtype=np.int64).reshape(-1)
    outside = np.flatnonzero((ids < 0) | (ids >= tokenizer.n_ids))
    if outside.size:
        at = int(outside[0])
        of = "" if number is None else f" of prompt {number}"
        raise DataError(
            f"prompt token {ids[at]} at position {at}{of} is outside the vocabulary of "
            f"{tokenizer.n_ids} ids; encode the prompt with the checkpoint's own tokenizer"
        )
    return ids.astype(np.int32)
