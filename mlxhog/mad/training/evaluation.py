"""The evaluations of a run: their steps, the accuracies of the validation rows, and the end."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.backends.backend import Backend
from mlxhog.mad.options import Recipe
from mlxhog.mad.run import Callbacks, CandidateRecord, EvalPoint, RunConfig
from mlxhog.mad.tasks import Dataset
from mlxhog.mad.tasks.dataset import acc_by_length, acc_macro, acc_token
from mlxhog.models.mad.config import MADConfig

DEFAULT_STEPS = 2_000
"""Steps of a run for which neither steps nor epochs are given."""
MIN_STEPS = 25
"""Between two evaluations without an interval: epochs of memorization have two steps."""
SOLVED = 0.99
"""Token accuracy on the selection split at which a task is solved, or a lower stop accuracy."""

Scores = Mapping[str, Any]
"""The accuracies of a `CandidateRecord` by their names; see `mad/tasks/dataset.py`."""


def step_limit(recipe: Recipe, per_epoch: int) -> int:
    """Return the most steps of a run with `per_epoch` steps in an epoch."""
    if recipe.epochs is not None:
        return recipe.epochs * per_epoch
    return DEFAULT_STEPS if recipe.steps is None else recipe.steps


def max_steps(config: RunConfig) -> int:
    """Return the most steps of a run of one worker."""
    per_epoch = math.ceil(config.settings["train_rows"] / config.recipe.batch_size)
    return step_limit(config.recipe, per_epoch)


class CandidateEvaluations:
    """Evaluations of a run so far, and whether the run is over."""

    def __init__(
        self,
        config: RunConfig,
        callbacks: Callbacks,
        rungs: Iterable[int],
        *,
        limit: int,
        per_epoch: int,
    ) -> None:
        self.curve: list[EvalPoint] = []  # every evaluation, on the selection split
        self.last_step = -1  # of the last evaluation
        self.status: str | None = None  # "done" or "pruned"; None while the run continues
        self._config, self._recipe = config, config.recipe
        self._limit, self._callbacks, self._rungs = limit, callbacks, sorted(rungs)
        self._every = self._recipe.eval_every or max(per_epoch, MIN_STEPS)
        self._best, self._since_best = -1.0, 0
        self._scores: Scores = {}

    def next_evaluation(self, step: int) -> int:
        """Return the first step after `step` at which the run is evaluated, the last at most."""
        regular = (step // self._every + 1) * self._every
        rungs = (rung for rung in self._rungs if rung > step)
        return min(self._limit, regular, next(rungs, self._limit))

    def add(self, step: int, seconds: float, loss: float | None, scores: Scores) -> None:
        """Record an evaluation `step` steps and `seconds` after the begin; it may end the run."""
        before, self.last_step, self._scores = self.last_step, step, scores
        kind = "acc" if self._recipe.select == "test" else "val"
        token, macro = scores[f"{kind}_token"], scores[f"{kind}_macro"]
        point = EvalPoint(step=step, seconds=seconds, loss=loss, acc_token=token, acc_macro=macro)
        self.curve.append(point)
        self._callbacks.on_eval(point)
        self._since_best = 0 if token > self._best else self._since_best + 1
        self._best = max(token, self._best)
        patience = self._recipe.patience
        if self.status is not None:  # of workers that are stopping
            return
        if (
            token >= self._recipe.stop_accuracy
            or step >= self._limit
            or (patience is not None and self._since_best >= patience)
        ):
            self.status = "done"
        elif any(before < rung <= step for rung in self._rungs):
            self.status = "pruned" if self._callbacks.should_prune(point) else None

    def record(
        self, status: str, steps: int, seconds: float, best_achievable: float = 1.0
    ) -> CandidateRecord:
        """Return the record of the run; accuracies of a diverged one are 0."""
        scores = dict(self._scores)
        if status == "diverged":
            ends = tuple((end, 0.0) for end, _ in scores.pop("by_length", ()))
            scores = {**dict.fromkeys(scores, 0.0), "by_length": ends}
        enough = min(SOLVED, self._recipe.stop_accuracy)
        solved = (point.step for point in self.curve if point.acc_token >= enough)
        return self._config.record(
            status,
            steps=steps,
            seconds=seconds,
            loss=self.curve[-1].loss if self.curve else None,
            solved=next(solved, None),
            curve=tuple(self.curve),
            best_achievable=best_achievable,
            **scores,
        )


MAX_NUMBERS = 1 << 22
"""Elements of the widest array of a chunk: large enough for speed, small beside a gradient."""
WIDEST_LAYER = 8
"""Elements of a position inside a layer, about, as a multiple of the model's width."""


def score(
    backend: Backend, rows: Dataset, model: MADConfig, *, beat: Callable[[], object]
) -> Scores:
    """Score test and validation rows at the parameters in the backend's parameter buffer."""
    scores: dict[str, Any] = {}
    for split, (x, y) in rows.splits().items():
        if split != "train":
            kind, predictions = "val", predict(backend, x, model, beat=beat)
            if split == "test":
                kind, scores["by_length"] = "acc", acc_by_length(rows, predictions)
            scores[f"{kind}_token"] = acc_token(y, predictions)
            scores[f"{kind}_macro"] = acc_macro(y, predictions)
    return scores


def predict(
    backend: Backend, x: NDArray[np.int32], model: MADConfig, *, beat: Callable[[], object]
) -> NDArray[np.int32]:
    """Return the most likely token at every position of (rows, length), chunk by chunk."""
    widest = max(model.vocab_size, WIDEST_LAYER * model.hidden_size)
    rows = max(1, MAX_NUMBERS // (widest * x.shape[1]))
    tokens = np.empty(x.shape, np.int32)
    for begin in range(0, len(x), rows):
        chunk = np.ascontiguousarray(x[begin : begin + rows], np.int32)
        tokens[begin : begin + rows] = backend.predictions(chunk)
        beat()
    return tokens
