"""Answer several prompts together, and measure how fast; `engine.py` writes the answers."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding.engine import (
    BATCH_SIZE,
    PREFILL_CHUNK,
    Engine,
    FinishReason,
    Piece,
    RecurrentModel,
    Request,
    State,
    at_least,
    checked_ids,
)
from mlxhog.decoding.sampling import Sampler
from mlxhog.decoding.text import TextStream


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
    at_least("max_new_tokens", max_new_tokens, 0)
    TextStream(tokenizer, stop)  # refuses an empty stop string
    engine = Engine(model, tokenizer, batch_size=batch_size, prefill_chunk=prefill_chunk)
    ends = {*end_tokens, tokenizer.bos} if stop_at_document_end else set()
    for index, prompt in enumerate(prompts):
        ids = checked_ids(prompt, tokenizer, index + 1 if len(prompts) > 1 else None)
        if max_new_tokens:
            engine.submit(
                Request(
                    prompt=ids,
                    sampler=sampler.of_row(index),
                    max_new_tokens=max_new_tokens,
                    stop=stop,
                    ends=ends,
                )
            )
    return _pieces(engine)


def _pieces(engine: Engine[State]) -> Iterator[Piece]:
    while engine.is_busy:
        yield from engine.step()


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
    """

    def __init__(self, count: int) -> None:
        self.rows = [Answer() for _ in range(count)]
        self._start = self._last = time.perf_counter()
        self._first: float | None = None

    def follow(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield the pieces unchanged, and record each."""
        for piece in pieces:
            row, self._last = self.rows[piece.row], time.perf_counter()
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
