"""What to expect of a text and a time: overfitting, weight decay, presets that did better.

All numbers are measured on whole addresses of the bundled text, a run each, by
`benchmarks/presets_by_text.py` (`results/presets_by_text.json`). A cell without a row was not
measured, and is called so.
"""

from __future__ import annotations

from math import log
from typing import Final, NamedTuple

from mlxhog.base.quantities import format_bytes, format_count, format_duration
from mlxhog.optim import Decayed, optimizer_of
from mlxhog.training.plan.values import TextPlan

MAX_PARAMETERS_PER_TOKEN: Final = 4.6  # a model with more is named at any number of epochs
BEST_EPOCHS: Final = ((50.0, 1.6), (14.0, 1.8), (6.5, 2.5), (3.5, 4.0), (2.0, 5.0))
"""Parameters per token, from which on validation loss rises after about this epoch."""
MIN_FOR_DECAY: Final = 3.4
"""Parameters per token from which on a higher weight decay helps; at 2 it changes nothing, at .9 it
hurts."""
REPEATED_DECAY: Final = 1.0
NEAR: Final = log(2.5)  # of a measured size or time
NOISE: Final = 0.02  # bits per byte by which one run may be better than an equal one
TOKENS_PER_MINUTE: Final = {"minute": 960_000, "minute-ngrams": 960_000, "5m": 160_000}
"""Measured on two quiet cores of a server; a budget is as many minutes as it has tokens for."""


class Row(NamedTuple):
    """The best validation score of a run."""

    megabytes: float
    minutes: float
    preset: str
    tokenizer: str
    bits_per_byte: float


COLUMNS: Final = (
    ("5m", "bpe:1024"),
    ("5m", "bytes"),
    ("minute", "bpe:4096"),
    ("minute", "bpe:1024"),
    ("minute", "sotu"),
    ("minute", "bytes"),
    ("minute-ngrams", "sotu"),
)
"""Presets and tokenizers, in the order of the scores of `BEST_SCORES`."""
BEST_SCORES: Final = {
    (0.3, 1): (1.831, 2.141, 1.935, 1.904, 1.880, 1.876, 2.147),
    (1, 1): (1.756, 2.131, 1.568, 1.557, 1.587, 1.819, 1.583),
    (3, 1): (1.736, 2.129, 1.386, 1.504, 1.365, 1.809, 1.368),
    (10, 1): (1.736, 2.129, 1.354, 1.490, 1.306, 1.798, 1.275),
    (0.3, 10): (1.882, 1.822, 1.936, 1.951, 1.916, 1.916, 2.207),
    (1, 10): (1.547, 1.585, 1.613, 1.612, 1.606, 1.611, 1.617),
    (3, 10): (1.376, None, 1.386, None, 1.386, None, 1.432),
    (10, 10): (1.360, None, 1.212, None, 1.223, None, 1.285),
    (1, 60): (1.591, None, None, 1.639, 1.695, None, None),
    (3, 60): (1.359, None, None, 1.416, 1.391, None, None),
}
"""Best bits per byte of a run by megabytes of text and minutes; None was not measured."""
ROWS: Final = [
    Row(*cell, *column, score)
    for cell, scores in BEST_SCORES.items()
    for column, score in zip(COLUMNS, scores, strict=True)
    if score is not None
]


def overfitting(plan: TextPlan, epochs: float | None) -> str | None:
    """Say from which epoch on a model overfits, if it is too large or has so many epochs."""
    parameters, tokens = plan.trained_parameters, plan.data.train.n_tokens
    ratio = parameters / max(tokens, 1)
    best = next((epoch for least, epoch in BEST_EPOCHS if ratio >= least), None)
    if plan.config.follow is not None:  # whose text grows
        return None
    if best is None or (ratio <= MAX_PARAMETERS_PER_TOKEN and (epochs is None or epochs <= best)):
        return None
    expected = "" if epochs is None else f", about {epochs:.3g} epochs expected"
    return (
        f"{format_count(parameters)} parameters for {format_count(tokens)} tokens of training text "
        f"({ratio:.1f} per token{expected}): the model will overfit from about epoch {best:g} on; "
        "take a smaller preset (mlxhog models lists them), more text or less time"
    )


def decay(plan: TextPlan, epochs: float | None) -> str | None:
    """Propose a higher weight decay for text that a large model reads often; None for examples."""
    ratio = plan.trained_parameters / max(plan.data.train.n_tokens, 1)
    optimizer = optimizer_of(plan.config)
    is_text = plan.data.train.rows(plan.config.seq_len) is None
    low = isinstance(optimizer, Decayed) and optimizer.weight_decay < REPEATED_DECAY
    if not (is_text and low and ratio >= MIN_FOR_DECAY) or (epochs is not None and epochs < 3):
        return None
    return (
        f"--weight-decay {REPEATED_DECAY:g} may help, as the text is repeated: after six epochs "
        "2.275 bits per byte became 2.180 with 6.9 parameters per token, 1.980 became 1.942 with "
        "3.5; with 2 nothing changed, with 0.9 it hurt (a run each; their best: 2.190 and 2.162, "
        "1.955 and 1.941)"
    )


def preset(plan: TextPlan, epochs: float | None) -> str:
    """Return the preset and tokenizer that were best for such a text and time, with scores."""
    if plan.config.init_from is not None or plan.resumption is not None:
        return "not measured for a model that has weights already"
    if plan.data.train.rows(plan.config.seq_len) is not None:
        return "not measured for examples"
    rate = TOKENS_PER_MINUTE.get(plan.config.model)
    n_bytes, own = plan.data.train.header["bytes"], (plan.config.model, plan.config.tokenizer)
    if rate is None or epochs is None or not epochs:
        return f"not measured for {own[0]} with {own[1]}, or for a time of unknown speed"
    minutes = epochs * plan.epoch_tokens / rate

    def distance(row: Row) -> float:
        return max(abs(log(row.megabytes * 1e6 / max(n_bytes, 1))), abs(log(row.minutes / minutes)))

    nearest = min(ROWS, key=distance)
    here = f"{format_bytes(n_bytes)} and {format_duration(60 * minutes)} of two cores"
    if distance(nearest) > NEAR:
        return f"not measured for {here}"
    rows = [row for row in ROWS if row[:2] == nearest[:2]]
    rows.sort(key=lambda row: row.bits_per_byte)
    scores = ", ".join(f"{r.preset} with {r.tokenizer} {r.bits_per_byte:.3f}" for r in rows)
    ours = next((row for row in rows if row[2:4] == own), None)
    is_near = ours is not None and ours.bits_per_byte <= rows[0].bits_per_byte + NOISE
    advice = "keep this one" if is_near else f"--model {rows[0].preset}, --tokenizer {rows[0][3]}"
    return (
        f"{advice}: bits per byte on English text of {nearest.megabytes:g} MB in "
        f"{nearest.minutes:g} min of two cores: {scores} (one run each; yours: {here})"
    )
