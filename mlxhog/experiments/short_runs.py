"""Trainings of some seconds that measure: for `analyze`, `advise` and the pairs of `compare`."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import backends
from mlxhog.arena.child import Lane
from mlxhog.backends.inference import InferenceModel
from mlxhog.base.quantities import Interval
from mlxhog.checkpoint import formats
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options, settled
from mlxhog.data import validation_set
from mlxhog.data.tokens import TokenFile
from mlxhog.display.views import Observer, Tell
from mlxhog.errors import WorkerFailed
from mlxhog.progress import Progress, Result
from mlxhog.training.supervisor import training as runs

_OF_STRATEGY = ("max_workers", "read", "overlap", "determinism", "follow")
PLAIN: dict[str, Any] = {
    one.name: one.default
    for one in options(TrainConfig).values()
    if one.name in _OF_STRATEGY or one.group == "cluster"
}
"""Defaults of options that a run with another strategy leaves out."""


def settings_for(config: TrainConfig, folder: Path | str, name: str, **chosen: Any) -> TrainConfig:
    """Return a configuration with other options, without evaluations, samples and checkpoints.

    `chosen` has the budget, too: time, tokens or steps.
    """
    never = Interval()
    ends = ("steps", "tokens", "time", "resume", "epochs", "patience", "stop_at_loss")
    budget = {**dict.fromkeys(ends), "keep_best": False}
    return replace(
        config,
        **{**budget, **settled(TrainConfig, **{"eval_every": "off", **chosen})},
        sample_every=never,
        save_every=never,
        runs_dir=str(folder),
        name=name,
    )


def train(settings: TrainConfig, observer: Observer[Progress]) -> Result:
    """Train; arguments and errors as of `mlxhog.training.supervisor.training.train`.

    Raises:
        KeyboardInterrupt: a signal asked to end.
    """
    result = runs.train(settings, observer=observer)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result


RETRY_FACTOR, MAX_TRIES = 4.0, 3  # of the time of a short run


def run_shortly(
    config: TrainConfig, tell: Tell, *, seconds: float, min_steps: int, flag: str, **chosen: Any
) -> tuple[Result, list[dict[str, Any]]]:
    """Train for some seconds in a temporary folder; return the result and the workers' times.

    The start-up does not count. If a worker takes less than `min_steps`, as with a large model or
    on a busy machine, the run is repeated for longer. `flag` gives runs longer.

    Raises:
        MlxhogError: as `mlxhog.training.supervisor.training.train`.
        WorkerFailed: a worker finished no step.
    """
    for _ in range(MAX_TRIES):
        with tempfile.TemporaryDirectory(prefix="mlxhog-short-") as folder:
            chosen |= {"time": seconds, "report_to": "none"}
            settings = settings_for(config, folder, "short", **chosen)
            result = train(settings, lambda now: tell(f"{now.step} steps"))
            times = Run(Path(result.run)).read_times()
        least = min((one["steps"] for one in times), default=0)
        if len(times) == len(result.workers) and least >= min_steps:
            break
        seconds *= RETRY_FACTOR
    if len(times) < len(result.workers) or not result.steps:
        raise WorkerFailed(
            f"not every worker finished a step within {seconds / RETRY_FACTOR:g} s; give them "
            f"longer, as in {flag} 30"
        )
    return result, times


ROWS = 16


def score(
    lane: Lane,
    backend: str,
    checkpoint: Path,
    validation: TokenFile,
    seq_len: int,
    val_subset_tokens: int | None,
    base_weights: str = "keep",
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return nats and bytes of batches of validation text at a checkpoint; runs in a child.

    Each sequence begins without a state; `val_subset_tokens` None is all of the text. The base of
    an adapter has the format `base_weights`, as in the run.
    """
    opened = formats.open(checkpoint)
    scorer = backends.create_alone(backend)
    weights = "float32" if base_weights == "keep" else base_weights
    scorer.load(opened.config, opened.tensors, weights=weights)
    return losses(scorer, validation, seq_len, val_subset_tokens)


def losses(
    scorer: InferenceModel, validation: TokenFile, seq_len: int, val_subset_tokens: int | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return nats and bytes of batches of validation text, as `score`, of a loaded model."""
    batches = validation_set.batches(
        validation, seq_len=seq_len, batch_size=ROWS, val_subset_tokens=val_subset_tokens
    )
    scored = [(scorer.evaluate(batch).nats, batch.n_bytes) for batch in batches if batch.n_bytes]
    return np.array([nats for nats, _ in scored]), np.array([n_bytes for _, n_bytes in scored])
