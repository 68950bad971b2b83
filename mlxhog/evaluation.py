"""Evaluation on the held-out text, in chunks that workers share out among themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlxhog.backends import Backend
from mlxhog.config import TrainConfig
from mlxhog.data import heldout
from mlxhog.data.tokens import TokenFile
from mlxhog.metrics import EMULATED

ROWS = 16  # sequences in one batch of an evaluation
CHUNK_BATCHES = 4
FINAL_TOKENS = 2_000_000  # the final evaluation covers at most this much text


@dataclass(frozen=True)
class Score:
    """Sums over a piece of held-out text."""

    nats: float
    n_bytes: int
    tokens: int


def final_tokens(config: TrainConfig) -> int:
    """Most held-out text of the final evaluation; an emulated model is slow and gets a sample."""
    return config.eval_tokens if config.kernels == EMULATED else FINAL_TOKENS


def final_chunks(file: TokenFile, config: TrainConfig) -> int:
    """Chunks of the final evaluation."""
    total = heldout.n_batches(
        file, seq_len=config.seq_len, batch_size=ROWS, eval_tokens=final_tokens(config)
    )
    return -(-total // CHUNK_BATCHES)


def score_chunk(
    backend: Backend,
    file: TokenFile,
    config: TrainConfig,
    chunk: int,
    beat: Callable[[], None],
) -> Score:
    """One chunk of the final evaluation, at the parameters in the backend's inbox.

    Args:
        backend: computes the loss.
        file: the held-out text.
        config: `seq_len`, `kernels` and `eval_tokens` count.
        chunk: 0 .. final_chunks - 1.
        beat: called after every batch.
    """
    return _score(
        backend,
        file,
        config,
        beat,
        eval_tokens=final_tokens(config),
        first=chunk * CHUNK_BATCHES,
        count=CHUNK_BATCHES,
    )


def score_sample(
    backend: Backend, file: TokenFile, config: TrainConfig, beat: Callable[[], None]
) -> Score:
    """`config.eval_tokens` of the held-out text, spread evenly over it; see `score_chunk`."""
    return _score(backend, file, config, beat, eval_tokens=config.eval_tokens, first=0, count=None)


def _score(
    backend: Backend,
    file: TokenFile,
    config: TrainConfig,
    beat: Callable[[], None],
    *,
    eval_tokens: int,
    first: int,
    count: int | None,
) -> Score:
    nats, n_bytes, tokens = 0.0, 0, 0
    for batch in heldout.batches(
        file,
        seq_len=config.seq_len,
        batch_size=ROWS,
        eval_tokens=eval_tokens,
        first=first,
        count=count,
    ):
        found = backend.evaluate(batch)
        nats += found.nats
        tokens += found.targets
        n_bytes += batch.n_bytes
        beat()
    return Score(nats, n_bytes, tokens)
