"""Answer several prompts together, and measure the speed; `engine.py` writes the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
)
from mlxhog.decoding.options import Sampling


def answer(
    model: RecurrentModel,
    prompts: Sequence[Sequence[int] | NDArray[np.int32]],
    *,
    tokenizer: Tokenizer,
    sampling: Sampling,
    stop_at_document_end: bool = True,
    end_tokens: Collection[int] = (),
    batch_size: int = BATCH_SIZE,
    prefill_chunk: int = PREFILL_CHUNK,
    before_step: Callable[[], object] = lambda: None,
) -> Iterator[Piece]:
    """Answer prompts of any lengths together, token by token.

    BOS is added before a prompt that does not begin with it, because models are trained with it.
    Padding of the vocabulary is never drawn. A drawn BOS ends the document. Each answer has its own
    random numbers and does not depend on the other answers, up to rounding in products of
    different shapes.

    Args:
        model: the model.
        prompts: ids below `tokenizer.n_ids`; a prompt may be empty.
        tokenizer: tokenizer of the checkpoint.
        sampling: options of each answer.
        stop_at_document_end: whether a drawn BOS ends the answer; else the text continues with
            another document.
        end_tokens: other tokens that end the document, such as the EOS of a checkpoint.
        batch_size: number of answers that are written together, >= 1; each needs a state.
        prefill_chunk: tokens per piece of a prompt, >= 1. It changes memory and speed.
        before_step: called before each token; it may change the parameters.

    Raises:
        DataError: an id of a prompt is outside the vocabulary.
        ConfigError: a number is out of its range.
        Diverged: the model's logits are not finite.
    """
    engine = Engine(model, tokenizer, batch_size=batch_size, prefill_chunk=prefill_chunk)
    ends = {*end_tokens, tokenizer.bos} if stop_at_document_end else set()
    for index, prompt in enumerate(prompts):
        engine.submit(Request(prompt=prompt, sampling=sampling, row=index, ends=ends))

    def pieces() -> Iterator[Piece]:
        while engine.is_busy:
            before_step()
            yield from engine.step()

    return pieces()


@dataclass
class Answer:
    """One answer, complete or in progress."""

    ids: list[int] = field(default_factory=list)  # its tokens, without the one that ends a document
    text: str = ""  # its text so far, without a stop string
    finish_reason: FinishReason | None = None  # why it ended; None while it is in progress
    ttft_s: float | None = None  # seconds from the start of all answers to its first token


class Answers:
    """Collects `Piece`s and measures their speed. The clock starts at construction.

    Args:
        count: number of answers.
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
            row.text += piece.text
            row.finish_reason = piece.finish_reason
            yield piece

    @property
    def tokens(self) -> int:
        """Number of tokens of all answers."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last token."""
        return self._last - self._start

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token of any answer, including the reading of its prompt."""
        return None if self._first is None else self._first - self._start

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second after the first one; None if there is only one token."""
        if self._first is None or self.tokens < 2 or self._last <= self._first:
            return None
        return (self.tokens - 1) / (self._last - self._first)
