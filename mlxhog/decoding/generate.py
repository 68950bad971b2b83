"""Text from a model, one token at a time, with its recurrent state instead of a growing cache."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding.sampling import Sampler
from mlxhog.errors import ConfigError, DataError

State = TypeVar("State")

_PREFILL = 512
"""A prompt is read in pieces of this length, so that memory stays flat however long it is."""


class Stepper(Protocol[State]):
    """A model in its recurrent form on some backend.

    The state is the backend's own; it is passed back unread, and only the newest one is used.
    """

    def init(self, batch: int) -> State:
        """Return the state before the first token, for `batch` rows."""
        ...

    def step(self, tokens: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        """Read tokens (B, S), S >= 1, and return the logits (B, V) after the last, and a state."""
        ...


def generate(
    stepper: Stepper[State],
    prompt: Sequence[int] | NDArray[np.int32],
    *,
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_new_tokens: int,
    stop_at_document_end: bool = True,
) -> Iterator[int]:
    """Yield new tokens after a prompt.

    BOS goes before the prompt unless it is there: models are trained with it. Rows of the
    vocabulary that only pad it are never drawn. A drawn BOS is the end of the document.

    Args:
        stepper: the model.
        prompt: ids below `tokenizer.n_ids`; it may be empty.
        tokenizer: of the checkpoint.
        sampler: chooses among the logits.
        max_new_tokens: at most this many, >= 0.
        stop_at_document_end: stop at a drawn BOS, which is not yielded; otherwise it is, and the
            text goes on with another document.

    Raises:
        DataError: an id of the prompt is outside the vocabulary.
        ConfigError: `max_new_tokens` is negative.
        Diverged: the model's logits are not finite.
    """
    # Checked here and not in the generator below, so that bad input is refused by the call.
    ids = _checked(prompt, tokenizer)
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}, expected 0 or more")
    return _generate(stepper, ids, tokenizer, sampler, max_new_tokens, stop_at_document_end)


def _generate(
    stepper: Stepper[State],
    ids: NDArray[np.int32],
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_new_tokens: int,
    stop: bool,
) -> Iterator[int]:
    if max_new_tokens == 0:
        return
    state = stepper.init(1)
    for start in range(0, len(ids), _PREFILL):
        logits, state = stepper.step(ids[None, start : start + _PREFILL], state)
    for left in reversed(range(max_new_tokens)):
        token = sampler(logits[:, : tokenizer.n_ids])
        if stop and token[0] == tokenizer.bos:
            return
        yield int(token[0])
        if left:
            logits, state = stepper.step(token[:, None], state)


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of tokens as soon as its characters are whole.

    A character whose bytes come in several tokens is held back until its last one; bytes that are
    not UTF-8 become U+FFFD. The pieces, joined, are the decoded text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if piece := decoder.decode(tokenizer.decode([token])):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def _checked(prompt: Sequence[int] | NDArray[np.int32], tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Return the prompt as (S,) int32 with BOS first, S >= 1."""
    ids = np.asarray(prompt, dtype=np.int64).reshape(-1)
    outside = np.flatnonzero((ids < 0) | (ids >= tokenizer.n_ids))
    if outside.size:
        at = int(outside[0])
        raise DataError(
            f"prompt token {ids[at]} at position {at} is outside the vocabulary of "
            f"{tokenizer.n_ids} ids; encode the prompt with the checkpoint's own tokenizer"
        )
    if not ids.size or ids[0] != tokenizer.bos:
        ids = np.concatenate([[tokenizer.bos], ids])
    return np.ascontiguousarray(ids, dtype=np.int32)
