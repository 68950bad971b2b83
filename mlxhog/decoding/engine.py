"""Write several answers together, one token of each per step; requests can come at any time.

Each prompt is read alone, in pieces, because a recurrent state cannot skip padding. Between two
pieces every running answer gets one token, so a long prompt delays the other answers by one piece
at most. When an answer ends, the next prompt takes its place. No answer depends on the answers
beside it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding.options import Sampling
from mlxhog.decoding.sampling import Sampler, check_finite
from mlxhog.decoding.text import TextStream
from mlxhog.errors import ConfigError, DataError

State: TypeAlias = Any
"""A state of the model, which generation only passes on."""
Int32 = NDArray[np.int32]

FinishReason = Literal["stop", "length", "document_end"]

PREFILL_CHUNK = 2048
"""Tokens per piece of a prompt; so memory does not grow with the length of the prompt."""

LEAST_LOGPROB = -9999.0
"""Reported for a probability of 0, whose logarithm JSON does not have."""

BATCH_SIZE = 16
"""Number of answers that are written together."""


class SessionInUse(ConfigError):
    """Another request of the session is in progress; the same request can succeed later."""


class RecurrentModel(Protocol):
    """The model interface that generation needs; a `Backend` implements it."""

    def logits(self, tokens: Int32, state: State | None) -> tuple[NDArray[np.float32], State]:
        """Read tokens (B, S), S >= 1; return the logits (B, V) after the last, and the state."""
        ...

    def every_logits(self, tokens: Int32, state: State | None) -> tuple[NDArray[np.float32], State]:
        """As `logits`, but after each of the tokens: (B, S, V)."""
        ...

    def stack_states(self, states: Sequence[State]) -> State:
        """Join the states of several batches into one with all their rows."""
        ...

    def take_state(self, state: State, rows: Sequence[int]) -> State:
        """Return the state of some rows."""
        ...


@dataclass(frozen=True)
class TokenScore:
    """The model's probability of a token, before temperature and filters.

    Attributes:
        token: the token.
        logprob: log of its probability; None for the first token that the model reads.
        top: log of the probability of the most likely tokens, the likeliest first.
    """

    token: int
    logprob: float | None
    top: Mapping[int, float]


@dataclass(frozen=True)
class Piece:
    """One token of one answer.

    Attributes:
        row: number of the request, from `Engine.submit`.
        token: the token; None at the end of a document.
        text: text that is now certain; the texts, joined, are the answer.
        finish_reason: why the answer ends here: at a stop string, at the allowed length, or at the
            end of the document; None if it continues.
        scores: scores of the token, if the request asks for them; before it those of the prompt.
    """

    row: int
    token: int | None
    text: str
    finish_reason: FinishReason | None = None
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for an answer.

    Attributes:
        prompt: ids below the tokenizer's `n_ids`; may be empty.
        sampling: options of the answer.
        row: number among several answers with the same settings; see `Sampler`.
        ends: tokens that end the document and the answer.
        session: name of the conversation that prompt and answer continue, or None.
        top: number of most likely tokens in the score of each token; None is no scores.
        scores_prompt: whether tokens of the prompt get scores, too.
        writes: whether there is an answer; if not, the prompt is read only.
    """

    prompt: Sequence[int] | Int32
    sampling: Sampling
    row: int = 0
    ends: Collection[int] = ()
    session: str | None = None
    top: int | None = None
    scores_prompt: bool = False
    writes: bool = True


@dataclass(frozen=True)
class Session:
    """The state of a conversation; for a recurrent model its size does not depend on the length.

    Attributes:
        state: recurrent state after the tokens that the model has read.
        unread: tokens of the conversation that the model has not read yet.
        n_tokens: number of all tokens of the conversation.
    """

    state: State
    unread: Int32
    n_tokens: int


class Engine:
    """Reads prompts and writes their answers, one token of each per step.

    Args:
        model: the model. Its parameters may change between two steps.
        tokenizer: tokenizer of the checkpoint.
        batch_size: number of answers that are written together, >= 1; each needs a state.
        prefill_chunk: tokens per piece of a prompt, >= 1. It changes memory, speed, and the wait of
            the other answers.
        most_sessions: largest number of stored sessions; the least recently used is dropped.

    Attributes:
        admits: whether waiting requests can start.

    Raises:
        ConfigError: a number is out of its range.

    Concurrency: for the thread that may call the model.
    """

    def __init__(
        self,
        model: RecurrentModel,
        tokenizer: Tokenizer,
        *,
        batch_size: int = BATCH_SIZE,
        prefill_chunk: int = PREFILL_CHUNK,
        most_sessions: int = 0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("prefill_chunk", prefill_chunk)):
            if value < 1:
                raise ConfigError(f"{name} is {value}, expected 1 or more")
        self._model, self._tokenizer = model, tokenizer
        self._batch_size, self._prefill_chunk = batch_size, prefill_chunk
        self._most_sessions = most_sessions
        self.admits = True
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._in_session: set[str] = set()
        self._n_requests = 0
        self.clear()

    def clear(self) -> None:
        """Drop every unfinished answer; its session stays as before the request."""
        self._waiting: deque[_Row] = deque()
        self._reading: deque[_Row] = deque()  # their prompts are read in part
        self._writing: list[_Row] = []
        self._state: State = None  # of `_writing`, in its order
        self._in_session.clear()

    @property
    def n_waiting(self) -> int:
        """Number of waiting requests."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Number of answers in progress: their prompt is being read, or they are being written."""
        return len(self._reading) + len(self._writing)

    @property
    def n_sessions(self) -> int:
        """Number of stored sessions."""
        return len(self._sessions)

    @property
    def is_busy(self) -> bool:
        """Whether there is an answer in progress or a waiting request."""
        return bool(self._waiting or self.n_running)

    def session(self, name: str) -> Session | None:
        """Return a session, or None if there is none or it was dropped."""
        return self._sessions.get(name)

    def submit(self, request: Request) -> int:
        """Add a request; returns its number, from 0, which its pieces have as `row`.

        BOS is added before the prompt, because models are trained with it, unless the prompt begins
        with it or continues a session.

        Raises:
            DataError: an id of the prompt is outside the vocabulary.
            SessionInUse: another request of the session is in progress.
        """
        prompt, name = checked_ids(request.prompt, self._tokenizer), request.session
        session = None if name is None else self.session(name)
        if session is not None:
            prompt = np.concatenate([session.unread, prompt])
        elif not prompt.size or prompt[0] != self._tokenizer.bos:
            prompt = np.concatenate([[self._tokenizer.bos], prompt])
        if not prompt.size:  # an empty prompt after the end of a document
            prompt = np.array([self._tokenizer.bos])
        row = _Row(self._n_requests, request, prompt.astype(np.int32), self._tokenizer, session)
        if name is not None:
            if name in self._in_session:
                raise SessionInUse(
                    f"another request of session {name!r} is in progress; wait for its answer, or "
                    "begin another session"
                )
            self._in_session.add(name)
        self._waiting.append(row)
        self._n_requests += 1
        return row.index

    def cancel(self, index: int) -> None:
        """Stop an answer in any state; no effect on one that has ended or does not exist.

        Its session stays as before the request.
        """
        rows = (*self._waiting, *self._reading, *self._writing)
        row = next((row for row in rows if row.index == index), None)
        if row is None:
            return
        self._in_session.discard(row.request.session or "")
        if row in self._writing:
            self._keep_only([j for j, one in enumerate(self._writing) if one is not row])
        else:
            (self._waiting if row in self._waiting else self._reading).remove(row)

    def step(self) -> list[Piece]:
        """Read a piece of a prompt, or several short prompts, and write a token of every answer.

        Raises:
            Diverged: the model's logits are not finite; call `clear` before another step.
        """
        return [*self.read(), *self.write()]

    def read(self) -> list[Piece]:
        """First half of a step: read prompts in turns, and write the first token after each.

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
            # Prompts are always cut at the same places, so an answer does not depend on the others.
            part, row.unread = np.split(row.unread, [self._prefill_chunk])
            if row.request.scores_prompt:
                every, row.state = self._model.every_logits(part[None], row.state)
                row.score_prompt(part, every[0, :, : self._tokenizer.n_ids])
                logits = every[:, -1]
            else:
                logits, row.state = self._model.logits(part[None], row.state)
            n_read += len(part)
            if row.unread.size:
                self._reading.append(row)
                continue
            if row.request.writes:
                (piece,) = self._draw([row], logits)
            else:
                piece = Piece(row.index, None, "", "length", row.taken_scores())
            pieces.append(piece)
            if piece.finish_reason is None:
                before = [self._state] if self._writing else []
                self._state = self._model.stack_states([*before, row.state])
                self._writing.append(row)
                if row.request.session is None:
                    row.state = None  # it is now in that of all
            else:
                self._store_session(row, piece, row.state)
        return pieces

    def write(self) -> list[Piece]:
        """Second half of a step: write one token of every answer whose prompt is read.

        Raises:
            Diverged: see `step`.
        """
        if not self._writing:
            return []
        rows = self._writing
        last = np.array([[row.last] for row in rows], np.int32)
        logits, self._state = self._model.logits(last, self._state)
        pieces, unfinished = self._draw(rows, logits), []
        for j, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            if piece.finish_reason is None:
                unfinished.append(j)
            elif row.request.session is not None:
                self._store_session(row, piece, self._model.take_state(self._state, [j]))
        if len(unfinished) < len(rows):
            self._keep_only(unfinished)
        return pieces

    def _draw(self, rows: Sequence[_Row], logits: NDArray[np.float32]) -> list[Piece]:
        """Choose the next token of each row from logits (B, V)."""
        logits = logits[:, : self._tokenizer.n_ids]
        # All tokens are drawn before one is taken: an error leaves no answer with more than others.
        tokens = [
            int(row.sampler(of_row[None], row.occurred)[0])
            for row, of_row in zip(rows, logits, strict=True)
        ]
        for row, token, of_row in zip(rows, tokens, logits, strict=True):
            if row.request.top is not None:
                row.scores.append(_scored(token, of_row, row.request.top))
        return [row.take(token) for row, token in zip(rows, tokens, strict=True)]

    def _keep_only(self, places: Sequence[int]) -> None:
        """Drop all answers of `_writing` except those at these places."""
        self._state = self._model.take_state(self._state, places) if places else None
        self._writing = [self._writing[j] for j in places]

    def _store_session(self, row: _Row, last: Piece, state: State) -> None:
        """Add a finished answer to its session, with the state after it."""
        name, unread = row.request.session, np.empty(0, np.int32)
        if name is None:
            return
        self._in_session.discard(name)
        if last.finish_reason == "stop":
            # The model has read the stop string, but the answer ends before it.
            assert row.state is not None
            state, unread = row.state, self._tokenizer.encode("".join(row.texts).encode())
        elif last.token is not None:
            unread = np.array([last.token], np.int32)
        n_tokens = row.n_before + (len(unread) if last.finish_reason == "stop" else row.n_written)
        self._sessions[name] = Session(state, unread, n_tokens)
        self._sessions.move_to_end(name)
        while len(self._sessions) > self._most_sessions:
            self._sessions.popitem(last=False)


class _Row:
    """One answer: the unread part of its prompt, and its sampler."""

    def __init__(
        self,
        index: int,
        request: Request,
        prompt: Int32,
        tokenizer: Tokenizer,
        session: Session | None,
    ) -> None:
        self.index, self.request, self.unread, self.last = index, request, prompt, -1
        self.state = None if session is None else session.state
        self.n_before = len(prompt)  # tokens of the session before the answer
        if session is not None:
            self.n_before += session.n_tokens - len(session.unread)
        self.n_written = 0
        self.texts: list[str] = []
        self.scores: list[TokenScore] = []
        self._before: NDArray[np.float32] | None = None  # logits after the last scored token
        self._hidden = 0 if prompt.size == len(request.prompt) else 1  # a start token was added
        self.sampler = Sampler(request.sampling, request.row)
        self._text = TextStream(tokenizer, request.sampling.stop)
        self.occurred: NDArray[np.bool_] | None = None
        if request.sampling.repetition_penalty != 1:
            self.occurred = np.zeros((1, tokenizer.n_ids), np.bool_)
            self.occurred[0, prompt] = True

    def score_prompt(self, part: Int32, logits: NDArray[np.float32]) -> None:
        """Add the scores of a piece of the prompt, from the logits (S, V) after its tokens.

        Raises:
            Diverged: the logits are not finite.
        """
        check_finite(logits.max(axis=-1))
        for token, after in zip(part.tolist(), logits, strict=True):
            if self._hidden:
                self._hidden = 0
            elif self._before is None:
                self.scores.append(TokenScore(token, None, {}))
            else:
                self.scores.append(_scored(token, self._before, self.request.top or 0))
            self._before = after

    def taken_scores(self) -> tuple[TokenScore, ...]:
        """Return the scores since the last call."""
        scores, self.scores = tuple(self.scores), []
        return scores

    def take(self, token: int) -> Piece:
        """Add a drawn token to the answer."""
        reason: FinishReason | None = "document_end"
        if ends := token in self.request.ends:
            text = self._text.end()
        else:
            if self.occurred is not None:
                self.occurred[0, token] = True
            self.last = token
            self.n_written += 1
            is_last = self.n_written == self.request.sampling.max_new_tokens
            text = self._text.read(token)
            if not self._text.stopped and is_last:
                text += self._text.end()  # this rest may contain a stop string
            reason = "stop" if self._text.stopped else "length" if is_last else None
        if self.request.session is not None:
            self.texts.append(text)
        return Piece(self.index, None if ends else token, text, reason, self.taken_scores())


def _scored(token: int, logits: NDArray[np.float32], top: int) -> TokenScore:
    """Return the score of a token under logits (V,), the largest of which is finite."""
    logprobs = logits - logits.max()
    logprobs = logprobs - np.log(np.exp(logprobs).sum(dtype=np.float64))
    top = min(top, len(logprobs))
    likeliest = np.argpartition(-logprobs, top - 1)[:top] if top else np.empty(0, np.intp)
    likeliest = likeliest[np.argsort(-logprobs[likeliest], kind="stable")]

    def spelled(one: int) -> float:
        return max(float(logprobs[one]), LEAST_LOGPROB)

    return TokenScore(token, spelled(token), {one: spelled(one) for one in likeliest.tolist()})


def checked_ids(
    prompt: Sequence[int] | Int32, tokenizer: Tokenizer, number: int | None = None
) -> Int32:
    """Return the ids of a prompt as (S,) int32.

    Args:
        prompt: ids.
        tokenizer: tokenizer of the checkpoint.
        number: number of the prompt among several, from 1, for the message.

    Raises:
        DataError: an id is outside the vocabulary.
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
