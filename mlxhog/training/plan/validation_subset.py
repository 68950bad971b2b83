"""The fixed validation subset that the evaluations of a run score, and its size.

All evaluations of a run score the same subset of the validation set (`data.validation_set`), and
`validation bits per byte` always refers to it. At the end workers score a larger part, too,
whose score is a separate number. Both sizes follow from the options alone, whatever the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mlxhog.config.config import TrainConfig
from mlxhog.config.train_options import EMULATED
from mlxhog.data import validation_set
from mlxhog.data.prepare import Prepared
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile

PART_FLOPS, LARGER_FLOPS = 1e12, 2e12
"""Most work to score the part and the larger text: 10 s and 20 s of two CPU cores."""
EMULATED_SHARE = 0.01  # of these, for emulated models, which are slow
LARGER_TOKENS = 2_000_000
MIN_BYTES = 1024


class ScoreSums(NamedTuple):
    """Sums over a piece of validation text: nats of its targets, bytes of text, targets."""

    nats: float
    n_bytes: int
    tokens: int

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""
        return validation_set.bits_per_byte(self.nats, self.n_bytes)


@dataclass(frozen=True)
class ValidationSubset:
    """The part of the validation set that all evaluations of a run score, as run.json has it."""

    asked_bytes: int  # its size, as `validation_set.subset` takes it
    text: str  # its name; scores of the same text have the same name
    n_bytes: int  # of text, prompts of examples included
    share: float  # of all validation text, up to 1
    batches: int
    all_batches: int  # with those of the larger final score
    larger_share: float  # of all validation text, in the larger final score; 0 without it
    tokens: int

    @classmethod
    def of(
        cls, data: Prepared, config: TrainConfig, parameters: int, asked_bytes: int | None = None
    ) -> ValidationSubset:
        """Choose the subset, or keep the size that a resumed run had before."""
        file = data.val
        if asked_bytes is None or config.val_subset_tokens is not None:
            asked_bytes = choose_bytes(config, parameters, file)
        texts = texts_of(file, config, parameters, asked_bytes)
        n_batches = [
            validation_set.n_batches(one, **rows_of_batch(config, parameters)) for one in texts
        ]
        n_bytes = [one.header["bytes"] for one in texts]
        is_all, whole = texts[0] is file, file.header["bytes"]
        return cls(
            asked_bytes=asked_bytes,
            text=validation_set.subset_name(
                data.corpus_sha256, data.text.name, None if is_all else asked_bytes
            ),
            n_bytes=n_bytes[0],
            share=n_bytes[0] / whole,
            batches=n_batches[0],
            all_batches=sum(n_batches),
            larger_share=sum(n_bytes[1:]) / whole,
            tokens=texts[0].n_tokens,
        )


class ValidationText(NamedTuple):
    """The text that the background tasks of workers score and sample from."""

    file: TokenFile
    tokenizer: Tokenizer
    subset: ValidationSubset  # of each evaluation


def texts_of(
    file: TokenFile, config: TrainConfig, parameters: int, asked_bytes: int
) -> list[TokenFile]:
    """The part of all evaluations and, if it is larger, the text of the last one.

    That is all validation text, or as much as `LARGER_FLOPS` score.
    """
    part = validation_set.subset(file, asked_bytes)
    tokens = min(_max_tokens(LARGER_FLOPS, config, parameters), LARGER_TOKENS)
    n_bytes = tokens * file.header["bytes"] // file.n_tokens
    is_alone = part is file or n_bytes <= asked_bytes
    return [part] if is_alone else [part, validation_set.subset(file, n_bytes)]


def rows_of_batch(config: TrainConfig, parameters: int) -> dict[str, int]:
    """Return the options of `validation_set.batches` for the batches of evaluations."""
    rows = validation_set.rows_of_batch(parameters, config.seq_len)
    return {"seq_len": config.seq_len, "batch_size": rows}


def choose_bytes(config: TrainConfig, parameters: int, file: TokenFile) -> int:
    """Return the bytes of the validation subset of a new run.

    It is `validation_set.SUBSET_BYTES` unless `val_subset_tokens` sets another size. For a
    large model it is halved until scoring takes at most `PART_FLOPS`, or to `MIN_BYTES`.
    """
    if config.val_subset_tokens is not None:
        targets, text_bytes = file.n_tokens - file.header["documents"], int(file.header["bytes"])
        return max(1, round(config.val_subset_tokens * text_bytes / max(int(targets), 1)))
    n_bytes, most = validation_set.SUBSET_BYTES, _max_tokens(PART_FLOPS, config, parameters)
    while n_bytes > MIN_BYTES and n_bytes > most:
        n_bytes //= 2
    return n_bytes


def _max_tokens(flops: float, config: TrainConfig, parameters: int) -> int:
    """Tokens that some work scores, at two operations per parameter and token."""
    return int(flops * (EMULATED_SHARE if config.kernels == EMULATED else 1.0) / (2 * parameters))
