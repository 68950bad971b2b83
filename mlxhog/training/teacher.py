"""The teacher of a run: counted n-grams as targets, in memory that all its workers share.

The target of a label becomes w p + (1 - w) onehot, p of `mlxhog/data/counts.py`. The model stays as
it is, and so does the loss that is reported: that of the byte that came. A network learns sooner
what may follow if it does not have to see it once for each possibility.

The supervisor's process counts before the workers start. The counts then lie in a segment without a
name, which workers, also those that are restarted or join, map read-only by its descriptor.

Source: Malagutti et al. 2024, The Role of n-gram Smoothing in the Age of Neural Networks,
arXiv:2403.17240.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import segment
from mlxhog.config import teachers
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import Batch
from mlxhog.data.counts import BUCKETS, SAMPLE, Counts
from mlxhog.data.encodings import words
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError
from mlxhog.files.quantities import format_count
from mlxhog.models.families import ModelConfig

_BYTES_PER_TOKEN = 32  # of counted text: keys, twice while they are sorted, and their counts


@dataclass(frozen=True)
class Teacher:
    """Counts in shared memory; picklable while a process is spawned.

    Attributes:
        fd: read-only descriptor of the segment: contexts, successors, weights.
        sizes: numbers of their rows.
        vocab: number of ids.
        choice: of the run.
    """

    fd: int
    sizes: tuple[int, int, int]
    vocab: int
    choice: teachers.Counts

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Let the new process inherit the descriptor."""
        return _received, (reduction.DupFd(self.fd), self.sizes, self.vocab, self.choice)

    @cached_property
    def counts(self) -> Counts:
        """The counts, mapped into this process on first use."""
        n, m, orders = self.sizes
        mapping = segment.attach(self.fd, 16 * n + 8 * m + 4 * orders * BUCKETS, readonly=True)
        contexts = np.frombuffer(mapping, np.uint32, 4 * n)
        successors = np.frombuffer(mapping, np.uint32, 2 * m, contexts.nbytes)
        weights = np.frombuffer(
            mapping, np.float32, orders * BUCKETS, contexts.nbytes + successors.nbytes
        )
        return Counts(
            contexts.reshape(n, 4),
            successors.reshape(m, 2),
            weights.reshape(orders, BUCKETS),
            self.vocab,
            self.choice.context,
        )

    def targets(self, batch: Batch) -> NDArray[np.float32]:
        """Return a distribution for every label, (B, S, vocab); zeros for ignored labels."""
        return self.counts.targets(batch, self.choice.weight)


def _received(inherited: Any, *rest: Any) -> Teacher:
    return Teacher(inherited.detach(), *rest)


def counted_bytes(config: TrainConfig, train: TokenFile) -> int:
    """Memory to count a text for the teacher; the counts themselves take less."""
    return 0 if config.teacher is None else _BYTES_PER_TOKEN * min(train.n_tokens, SAMPLE)


@contextmanager
def of_run(choice: teachers.Counts | None, train: TokenFile) -> Iterator[Teacher | None]:
    """Count the training text for the workers of a run; None without a teacher.

    Raises:
        DataError: the text is too short, or its token file is damaged.
        EnvironmentLacks: there is too little memory.
    """
    if choice is None:
        yield None
        return
    counts = Counts.of(train, choice.context)
    parts = counts.contexts, counts.successors, counts.weights
    new = segment.create(sum(part.nbytes for part in parts))
    try:
        with new.mapping as mapping:
            for part in parts:
                mapping.write(part.data)
        n, m, orders = map(len, parts)
        yield Teacher(new.readonly_fd, (n, m, orders), counts.vocab, choice)
    finally:
        os.close(new.fd)
        os.close(new.readonly_fd)


def check(
    config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer, train: TokenFile
) -> list[str]:
    """Refuse a teacher that this run cannot have; returns notes for the user.

    Raises:
        ConfigError: the text consists of prompts and completions, or the model has another
            vocabulary than the tokenizer.
    """
    if config.teacher is not None:
        name = config.teacher.name
        if train.prompts is not None:
            raise ConfigError(
                f"teacher {name}: {words(config.data)} has prompts and completions, and counts are "
                "of plain text; leave teacher out"
            )
        if model.vocab_size != tokenizer.vocab_size:
            raise ConfigError(
                f"teacher {name}: model {config.model} has vocab_size {model.vocab_size}, and "
                f"tokenizer {config.tokenizer} {tokenizer.vocab_size}; leave teacher out, or train "
                "a model with the vocabulary of its tokenizer"
            )
    if train.n_tokens <= SAMPLE:
        return []
    of = f"{format_count(SAMPLE)} of the {format_count(train.n_tokens)} training tokens"
    return [f"counts are of a sample: {of}"]
