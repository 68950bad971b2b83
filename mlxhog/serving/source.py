"""Sources of a generator's weights: a run that trains, or a checkpoint.

    source, model = open_source("latest", mode="double_buffer", ...)     # `opening.py`
    follower = WeightFollower(source, model.backend)
    loaded = follower.refresh(in_sequence=False)                         # between two tokens

A generator checks for newer weights between two tokens and loads them. A run that trains is read
from its arena, which is mapped read-only: a reader never waits for a worker, and no worker waits
for a reader. `mlxhog/serving/__init__.py` lists the modes.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.process import monotonic_ns, process_is_gone
from mlxhog.arena.published import COUNTERS, WORDS, SeqlockReader, Snapshots, copy_racily
from mlxhog.arena.requests import CONNECT_S, NoAnswer
from mlxhog.backends.backend import Backend
from mlxhog.checkpoint import hub, manifest
from mlxhog.checkpoint.base_model import BaseModel
from mlxhog.checkpoint.formats import Opened
from mlxhog.checkpoint.formats.opening import refuse_not_finite
from mlxhog.checkpoint.run import run_of
from mlxhog.errors import ArenaError
from mlxhog.models.families import ModelConfig
from mlxhog.optim.gradients import Float32
from mlxhog.optim.rule import parameter
from mlxhog.serving import CHECKPOINT, READ_MODES

POLL_S = 0.5  # seconds between two checks whether a run that has ended trains again
LOADING_SHARE = 0.1  # largest share of a generator's time for finding and loading weights


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Version and age of the weights in a backend."""

    version: int  # number of the last update, since initialization, that may be in the weights
    oldest: int  # number of the last update that is in them completely, with all before it
    age_updates: int = 0  # updates that the run applied since then
    age_s: float = 0.0  # seconds since these weights were the newest
    racy: bool = False  # whether they were read while workers wrote them

    @property
    def consistent(self) -> bool:
        """Whether the weights are the model between two updates."""
        return self.oldest == self.version and not self.racy


class WeightSource:
    """Weights that may change; used by the thread of the backend into which they are loaded."""

    mode: str  # one of `READ_MODES`
    weights: str  # their format in the backend
    name: str  # of the run, average or checkpoint, for people
    note = ""  # why the weights are not read as requested
    counts_updates = True  # whether versions are known; foreign checkpoints have none
    next_source: "Callable[[int], WeightSource | None]" = staticmethod(lambda version: None)
    """Function of a version, called after this source has ended: the resumed run, a checkpoint of a
    later version, or None."""

    def newest(self) -> int:
        """Version (number of updates) of the newest readable weights; cheap, never blocks."""
        raise NotImplementedError

    def has_newer(self) -> bool:
        """Whether there are newer weights than the loaded ones; cheap, never blocks."""
        return False

    def load(self, backend: Backend) -> LoadedWeights:
        """Load the newest weights into the backend; its recurrent states stay valid.

        Raises:
            CheckpointError: the weights are not finite; the backend is unusable until a load
                succeeds.
        """
        raise NotImplementedError

    def with_age(self, loaded: LoadedWeights) -> LoadedWeights:
        """Return the loaded weights with their present age."""
        return loaded

    def ended(self) -> bool:
        """Whether the run has ended, so that the weights do not change any more."""
        return True

    def trains(self) -> bool:
        """Whether a process trains the run of these weights now."""
        return not self.ended()

    def close(self) -> None:
        """Let go of the run."""


class CheckpointWeights(WeightSource):
    """Weights of a checkpoint, which never change, whatever the requested read mode.

    `weights` is their format in the backend; for float32 an adapter of a run has that of its base
    in the run, so it scores what the run's own evaluations do. `note` says why the run itself is
    not read.
    """

    def __init__(self, opened: Opened, mode: str, weights: str, note: str = "") -> None:
        self._opened, self.weights, self.note = opened, weights, note
        self._tensors = opened.tensors
        self.mode = READ_MODES[0] if mode == CHECKPOINT else mode
        path, self._run = opened.path, run_of(opened.path)
        of_run = "" if self._run is None else f" of run {self._run.name}"
        self.name = f"checkpoint {hub.title(path) or path.name}{of_run}"
        self.counts_updates = (path / manifest.NAME).is_file()
        record: dict[str, Any] = {"step": 0, "state": {}}
        if self.counts_updates:
            record = manifest.read(path)
        self._version: int = record["step"]
        if weights == "float32" and opened.base is not None:
            held = record["state"].get("base", {}).get("weights", "keep")
            self.weights = weights if held == "keep" else held

    def newest(self) -> int:
        """The checkpoint's version."""
        return self._version

    def load(self, backend: Backend) -> LoadedWeights:
        """Load the weights into the backend; see `WeightSource.load`."""
        not_finite = backend.load(self._opened.config, self._tensors, weights=self.weights)
        refuse_not_finite(not_finite, self._opened.path)
        return LoadedWeights(version=self._version, oldest=self._version)

    def trains(self) -> bool:
        """Whether a process trains the checkpoint's run now."""
        return self._run is not None and self._run.is_locked()

    def close(self) -> None:
        """Release the files."""
        self._tensors = {}


class NoWeights(ArenaError):
    """A run that trains but has no readable weights; its newest checkpoint is read."""


class RunWeights(WeightSource):
    """Weights in the arena of a run that trains.

    It owns the connected arena, unless an error is raised here. `weights` is as of
    `CheckpointWeights`, `patience_s` the longest wait for the first snapshot. Of a run with an
    adapter the `base` is loaded once, and then the adapter alone changes.

    Raises:
        NoWeights: the mode needs snapshots, and the run publishes none.
        NoAnswer: no snapshot is published in this time.
    """

    def __init__(
        self,
        arena: Arena,
        model: ModelConfig,
        *,
        name: str,
        mode: str = READ_MODES[0],
        weights: str = "float32",
        base: BaseModel | None = None,
        patience_s: float = 2 * CONNECT_S,
    ) -> None:
        self.mode, self._patience_s = mode, patience_s
        self._arena, self._model, self._name = arena, model, name
        self._base = base
        self.weights = base.weights if base is not None and weights == "float32" else weights
        segments = arena.layout.segments
        self._n = arena.layout.probe.offset  # floats of the parameters
        self._shared, self.name = arena.params, f"run {name}"
        # With local averaging each worker has its own parameters.
        own = [one for one in segments if re.fullmatch(r"copies\.\d+", one)]
        if own and mode == "racy":
            self._shared = arena.segment(own[0])
            self.name = f"run {name}, the own parameters of worker 1 of {len(own)}"
        elif own:
            self.name = f"run {name}, the average of its workers' own parameters"
        self._marks = SeqlockReader(arena) if COUNTERS in segments else None
        self._number, self._version, self._read_ns = 0, -1, monotonic_ns()
        self._bound: Backend | None = None
        self._copies: Snapshots | None = None
        if mode == "racy":
            return
        if WORDS not in segments:
            raise NoWeights(
                f"run {name} publishes no snapshots (start it with --live on, or "
                "read its parameters while workers write them with --mode racy)"
            )
        self._copies = Snapshots(arena)
        before = self._copies.number()
        arena.ask_for_snapshots()
        self._wait_for_copy(self._copies, since=before)

    def _wait_for_copy(self, copies: Snapshots, since: int) -> None:
        """Wait for a snapshot with a number above `since`, unless none will come."""
        until = monotonic() + self._patience_s
        while copies.number() <= since and not self.ended() and monotonic() < until:
            newest = copies.newest()
            if newest is not None and newest.version == self._counted() == newest.oldest:
                return  # without new updates the run publishes no new snapshot
            time.sleep(0.005)
        if copies.number() == 0:
            raise NoAnswer(
                f"run {self._name} has published no snapshot of its weights within "
                f"{self._patience_s:.0f} s; is its process stopped? --mode racy needs no snapshot"
            )

    def _counted(self) -> int:
        return self._arena.counters.load("version")

    def newest(self) -> int:
        """Version of the newest snapshot, or of the shared parameters."""
        if self._copies is None:
            return self._counted()
        newest = self._copies.newest()
        return 0 if newest is None else newest.version

    def has_newer(self) -> bool:
        """Whether there are newer weights than the loaded ones."""
        if self._copies is None:
            return self._counted() != self._version
        return self._copies.number() != self._number

    def load(self, backend: Backend) -> LoadedWeights:
        """Load the weights in the read mode; see `WeightSource.load`."""
        layout = self._arena.layout
        out = np.zeros(layout.n_floats, np.float32)
        loaded = self._read(out[: self._n])
        self._version = loaded.version
        if self._base is None and self.weights != "float32":
            tensors = {name: parameter(out, slot) for name, slot in layout.slots.items()}
            not_finite = backend.load(self._model, tensors, weights=self.weights)
            refuse_not_finite(not_finite, Path(self._name))
            return self.with_age(loaded)
        if self._bound is not backend:
            if self._base is not None:
                replace(self._base, weights=self.weights).load_into(backend, self._model)
            backend.bind(self._model, layout)
            self._bound = backend
        backend.copy_in(out)
        return self.with_age(loaded)

    def _read(self, out: Float32) -> LoadedWeights:
        copies = self._copies
        if copies is not None:
            while (copy := copies.read(out)) is None:
                self._wait_for_copy(copies, since=0)
            self._number, self._read_ns = copy.number, copy.time_ns
            return LoadedWeights(version=copy.version, oldest=copy.oldest)
        self._read_ns, oldest = monotonic_ns(), self._counted()
        copy_racily(out, self._shared[: self._n])
        # Updates in progress are counted first, so that one that ends now is counted.
        version = 0 if self._marks is None else self._marks.writers()
        return LoadedWeights(version=version + self._counted(), oldest=oldest, racy=True)

    def with_age(self, loaded: LoadedWeights) -> LoadedWeights:
        """Return the loaded weights with their present age."""
        behind = max(0, self._counted() - loaded.version)
        age_s = (monotonic_ns() - self._read_ns) / 1e9 if behind else 0.0
        return replace(loaded, age_updates=behind, age_s=age_s)

    def ended(self) -> bool:
        """Whether the run has ended, or its process has died."""
        if self._copies is not None and self._copies.closed:
            return True
        if self._arena.counters.load("command") == ControlCommand.EXIT:
            return True
        return process_is_gone(*self._arena.creator)

    def close(self) -> None:
        """Release the run."""
        self._shared = np.empty(0, np.float32)
        self._arena.close()


class WeightFollower:
    """A backend whose weights follow a source, as the read mode allows.

    After the source has ended, it polls for the next source. Loads and polls take at most a tenth
    of the time, so a large model changes less often than the run publishes snapshots. For the
    thread of the backend.

    Raises:
        CheckpointError: the weights are not finite.
    """

    def __init__(self, source: WeightSource, backend: Backend) -> None:
        """Load the newest weights."""
        self.source, self.backend = source, backend
        self._load()
        # The first load also prepared the backend: its time does not count.
        self._load_after = self._poll_after = 0.0

    def _load(self) -> None:
        began = monotonic()
        self._loaded = self.source.load(self.backend)
        self._replaced = False  # whether the source is another than that of the loaded weights
        ended = monotonic()
        self._load_after = ended + (ended - began) / LOADING_SHARE

    def has_newer(self) -> bool:
        """Whether the newest weights differ from the loaded ones."""
        began = monotonic()
        if began >= self._poll_after:
            ended = self.source.ended()
            newer = self.source.next_source(self.source.newest()) if ended else None
            now = monotonic()
            self._poll_after = now + max(POLL_S, (now - began) / LOADING_SHARE)
            if newer is not None:
                newer.next_source = self.source.next_source
                self.source.close()
                self.source, self._replaced = newer, True
        return self._replaced or self.source.has_newer()

    def is_due(self) -> bool:
        """Whether there are newer weights and they may be loaded now."""
        return monotonic() >= self._load_after and self.has_newer()

    def refresh(self, *, in_sequence: bool) -> LoadedWeights:
        """Load newer weights if they are due, between two tokens; return those in use.

        In a sequence, an answer in progress, mode `pinned_per_sequence` keeps its weights.
        """
        is_pinned = in_sequence and self.source.mode == "pinned_per_sequence"
        if not is_pinned and self.is_due():
            self._load()
        return self._loaded

    def loaded(self) -> LoadedWeights:
        """Return the weights in the backend with their present age."""
        return self.source.with_age(self._loaded)
