"""Answer several prompts together, and measure the speed; `engine.py` writes the answers."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding.engine import (
    BATCH_SIZE,
    PREFILL_CHUNK,
    Engine,
    FinishReason,
    Int32,
    Piece,
    RecurrentModel,
    Request,
)
from mlxhog.decoding.options import Sampling


def answer(
    model: RecurrentModel,
    prompts: Sequence[Sequence[int] | Int32],
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

    Padding of the vocabulary is never drawn. Each answer has its own random numbers and does not
    depend on the other answers, up to rounding in products of different shapes.

    An answer ends at a drawn BOS, where `stop_at_document_end`, else the text continues with
    another document; and at one of `end_tokens`, such as the EOS of a checkpoint. Sizes are those
    of `Engine`. `before_step` is called before each token; it may change the parameters.

    Raises:
        DataError, ConfigError, Diverged: as of `Engine`.
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
    """Collects the `Piece`s of some answers and measures their speed, from its construction on."""

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
