"""Read the weights of a run that trains from its arena, which is mapped read-only.

A reader never waits for a worker, and no worker waits for a reader. `mlxhog/live/__init__.py` lists
the modes.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.arena.process import monotonic_ns, process_is_gone
from mlxhog.arena.published import MARKS, WORDS, Copies, Float32, MarksReader, copy_racily
from mlxhog.arena.requests import CONNECT_S, NoAnswer
from mlxhog.backends.backend import Backend
from mlxhog.checkpoint.formats.opening import refuse_not_finite
from mlxhog.errors import ArenaError
from mlxhog.live import READ_MODES
from mlxhog.live.source import Loaded, WeightSource
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.optim.rule import parameter


class NoWeights(ArenaError):
    """Why a run that trains gives no weights now, so that its newest checkpoint is read."""


class RunWeights(WeightSource):
    """The weights in the arena of a run that trains.

    Args:
        arena: connected arena; this object closes it, unless an error is raised here.
        model: architecture of the run.
        name: name of the run, for messages.
        mode: one of `READ_MODES`.
        weights: dtype of the backend's weights, for `Backend.load`.
        patience_s: longest wait for the first copy.

    Raises:
        NoWeights: the mode needs copies, and the run publishes none.
        NoAnswer: no copy is published in this time.
        ArenaError: the arena has another model.
    """

    def __init__(
        self,
        arena: Arena,
        model: ModelConfig,
        *,
        name: str,
        mode: str = READ_MODES[0],
        weights: str = "float32",
        patience_s: float = 2 * CONNECT_S,
    ) -> None:
        self.mode, self._patience_s = mode, patience_s
        self._arena, self._model, self._weights, self._name = arena, model, weights, name
        layout = arena.layout
        _check_model(arena, model, name)
        self._n = layout.probe.offset  # floats of the parameters
        self._shared, self.whose = arena.params, f"run {name}"
        # Of averaged runs each worker has parameters of its own.
        own = [one for one in layout.segments if re.fullmatch(r"copies\.\d+", one)]
        if own and mode == "racy":
            self._shared = arena.segment(own[0])
            self.whose = f"run {name}, the own parameters of worker 1 of {len(own)}"
        elif own:
            self.whose = f"run {name}, the average of its workers' own parameters"
        self._marks = MarksReader(arena) if MARKS in layout.segments else None
        self._number, self._version, self._taken_ns = 0, -1, monotonic_ns()
        self._bound: Backend | None = None
        self._copies: Copies | None = None
        if mode == "racy":
            return
        if WORDS not in layout.segments:
            raise NoWeights(
                f"run {name} does not publish copies for readers (start it with --live on, or "
                "read its parameters while workers write them with --mode racy)"
            )
        self._copies = Copies(arena)
        before = self._copies.number()
        arena.ask_for_copies()
        self._wait_for_copy(self._copies, since=before)

    def _wait_for_copy(self, copies: Copies, since: int) -> None:
        """Wait for a copy with a number above `since`, unless none will come."""
        until = time.monotonic() + self._patience_s
        while copies.number() <= since and not self.ended() and time.monotonic() < until:
            newest = copies.newest()
            if newest is not None and newest.version == self._counted() == newest.oldest:
                return  # without new updates the run publishes no new copy
            time.sleep(0.005)
        if copies.number() == 0:
            raise NoAnswer(
                f"run {self._name} has published no copy of its weights within "
                f"{self._patience_s:.0f} s; is its process stopped? --mode racy needs no copy"
            )

    def _counted(self) -> int:
        """Number of updates applied so far."""
        return self._arena.counters.load("version")

    # -- the methods of WeightSource -------------------------------------------------------------

    def newest(self) -> int:
        """Version of the newest copy, or of the parameters themselves."""
        if self._copies is None:
            return self._counted()
        newest = self._copies.newest()
        return 0 if newest is None else newest.version

    def has_newer(self) -> bool:
        """Whether there are newer weights than the loaded ones."""
        if self._copies is None:
            return self._counted() != self._version
        return self._copies.number() != self._number

    def load(self, backend: Backend) -> Loaded:
        """Load the weights of the read mode; see `WeightSource.load`."""
        layout = self._arena.layout
        out = np.zeros(layout.n_floats, np.float32)
        read = partial(self._copy, self._copies) if self._copies is not None else self._racy
        loaded = read(out[: self._n])
        self._version = loaded.version
        if self._weights == "float32":
            if self._bound is not backend:
                backend.bind(self._model, layout)
                self._bound = backend
            backend.take(out)
            return self.aged(loaded)
        tensors = {name: parameter(out, slot) for name, slot in layout.slots.items()}
        not_finite = backend.load(self._model, tensors, weights=self._weights)
        refuse_not_finite(not_finite, Path(self._name))
        return self.aged(loaded)

    def aged(self, loaded: Loaded) -> Loaded:
        """Return the same with its present age."""
        behind = max(0, self._counted() - loaded.version)
        age_s = (monotonic_ns() - self._taken_ns) / 1e9 if behind else 0.0
        return replace(loaded, age_updates=behind, age_s=age_s)

    def ended(self) -> bool:
        """Whether the run has ended, or its process has died."""
        if self._copies is not None and self._copies.closed:
            return True
        if self._arena.counters.load("command") == Command.EXIT:
            return True
        return process_is_gone(*self._arena.creator)

    def close(self) -> None:
        """Release the run."""
        self._shared = np.empty(0, np.float32)
        self._arena.close()

    # -- reading ---------------------------------------------------------------------------------

    def _racy(self, out: Float32) -> Loaded:
        """Read the parameters while workers write them."""
        self._taken_ns, oldest = monotonic_ns(), self._counted()
        copy_racily(out, self._shared[: self._n])
        # Updates in progress are counted first, so that one that ends now is counted.
        version = 0 if self._marks is None else self._marks.writers()
        return Loaded(version=version + self._counted(), oldest=oldest, racy=True)

    def _copy(self, copies: Copies, out: Float32) -> Loaded:
        """Read the newest published copy."""
        while (copy := copies.take(out)) is None:
            self._wait_for_copy(copies, since=0)
        self._number, self._taken_ns = copy.number, copy.time_ns
        return Loaded(version=copy.version, oldest=copy.oldest)


def _check_model(arena: Arena, model: ModelConfig, name: str) -> None:
    """Compare the arena's parameters with the model's."""
    here = {parameter: spec.shape for parameter, spec in families.param_spec(model).items()}
    there = {parameter: slot.shape for parameter, slot in arena.layout.slots.items()}
    if here != there:
        different = sorted(here.items() ^ there.items())[0][0]
        raise ArenaError(
            f"the arena of run {name} has another model than its model/config.json, for example "
            f"in {different}; was the run's directory copied? Name one of its checkpoints"
        )
