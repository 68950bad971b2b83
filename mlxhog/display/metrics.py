"""Format a run's progress and result: columns, scores, shares of a step."""

from collections.abc import Callable, Mapping

from mlxhog.base.quantities import format_bytes, format_count, format_share
from mlxhog.progress import PARTS, Progress, WorkerReport


def label(gpu_write: str, kernels: str) -> str:
    """Return the label of a run with Metal kernels; "" without them.

    >>> label("metal-emulated", "native")
    'gpu-write metal-emulated'
    """
    parts = (("gpu-write", gpu_write), ("kernels", kernels))
    return ", ".join(f"{name} {value}" for name, value in parts if "metal" in value)


WORKER_COLUMNS: tuple[tuple[str, Callable[[WorkerReport], str]], ...] = (
    ("worker", lambda one: str(one.slot)),
    ("backend", lambda one: one.backend),
    ("state", lambda one: one.state),
    ("steps", lambda one: str(one.steps)),
    ("tok/s", lambda one: format_count(one.tokens_per_s)),
    ("staleness mean / max", lambda one: f"{one.mean_staleness:.1f} / {one.max_staleness}"),
    ("dropped", lambda one: str(one.dropped)),
    ("memory", lambda one: format_bytes(one.memory_bytes)),
)
"""Columns of a table of workers: name, and text of a cell."""


def format_loss(value: float | None) -> str:
    """Format a loss; - is no loss yet."""
    return "-" if value is None else f"{value:.3f}"


def scored_at(val_step: object, steps: float | None) -> str:
    """Return the step of a validation score if it is not the last one, else "".

    A run without an evaluation has no step; an edited file may have any value.

    >>> scored_at(3, 16), scored_at(16, 16)
    (' at step 3 of 16', '')
    """
    if type(val_step) is not int or steps is None or val_step == steps:
        return ""
    return f" at step {val_step:,} of {steps:,.0f}"


def best_of(progress: Progress) -> str:
    """Return which evaluation is the best; "" without one.

    >>> best_of(Progress(val_step=9, best_step=9, best_bits_per_byte=1.5))
    'the best so far'
    """
    best, step = progress.best_bits_per_byte, progress.best_step
    if best is None or step is None:
        return ""
    is_best = step == progress.val_step
    return "the best so far" if is_best else f"best {format_loss(best)} at step {step:,}"


def beside_ngram(bits: float, baseline: float) -> str:
    """Compare a model with the n-gram baseline on the same text.

    >>> beside_ngram(1.707, 1.439)
    'n-gram baseline (Kneser-Ney, 7 bytes of context): 1.439; the model does not beat it'
    """
    beats = "beats" if bits < baseline else "does not beat"
    return f"n-gram baseline (Kneser-Ney, 7 bytes of context): {baseline:.3f}; the model {beats} it"


def share_text(share: float) -> str:
    """Format a share of a text.

    >>> share_text(1.0), share_text(0.076), share_text(0.0004)
    ('all of it', '8%', '0.04%')
    """
    if share >= 1:
        return "all of it"
    return f"{share:.0%}" if share >= 0.01 else f"{100 * share:.1g}%"


def format_rate(value: float | None) -> str:
    """Format a share; - is not measured."""
    return "-" if value is None else format_share(value)


def format_parts(parts: Mapping[str, float]) -> list[str]:
    """Format the parts that took time.

    >>> format_parts({"gradient": 0.951, "read": 0.004, "wait": 0.0, "other": 0.045})
    ['gradient 95 %', 'read 0.4 %', 'other 4.5 %']
    """
    return [f"{name} {format_share(share)}" for name, share in parts.items() if share]


def rows(by_worker: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return a table of shares, header first: a row per worker, a column per part of a step."""
    filled = {name: parts for name, parts in by_worker.items() if parts}
    columns = [part for part in PARTS if any(part in parts for parts in filled.values())]
    header = [["", *columns]] if filled else []
    return header + [
        [name, *(format_share(parts[part]) if part in parts else "-" for part in columns)]
        for name, parts in filled.items()
    ]
