"""Sources of a text generator's weights: a running run, or a checkpoint that stays as it is.

    source, model = open_source("latest", mode="double_buffer", ...)     # `opening.py`
    follower = Follower(source, model.backend)
    loaded = follower.refresh(in_sequence=False)                         # between two tokens

A generator asks between tokens whether there are newer weights, and takes them then; nobody waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from numpy.typing import NDArray

from mlxhog.backends.backend import Backend, Float32, Int32, State, WeightHolder
from mlxhog.checkpoint.formats.opening import refuse_not_finite
from mlxhog.checkpoint.run import run_of
from mlxhog.errors import ConfigError
from mlxhog.live import READ_MODES
from mlxhog.models.families import ModelConfig

LOOK_S = 0.5  # between two looks whether a run that has ended trains again
LOADING_PART = 0.1  # of a generator's time that loading newer weights may take


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Which weights a backend holds.

    Attributes:
        version: updates that may be in them, since the model was initialised.
        oldest: updates that are in them whole; less than `version` where others were under way.
        age_updates: updates applied since, when this was looked at.
        age_s: seconds since they were the newest, when this was looked at.
        mixed: tensors that are not as they were between two updates; the whole model counts as one
            where a mode promises that, and None is: nobody has looked.
    """

    version: int
    oldest: int
    age_updates: int = 0
    age_s: float = 0.0
    mixed: int | None = 0

    @property
    def consistent(self) -> bool:
        """Whether they are the model after some update, and before the next."""
        return self.oldest == self.version and self.mixed == 0


class WeightSource(Protocol):
    """Weights that may become newer. Belongs to the thread of the backend that it fills."""

    @property
    def counts_updates(self) -> bool:
        """Whether versions are known: a checkpoint of others does not say how many updates."""

    @property
    def mode(self) -> str:
        """One of `READ_MODES`."""

    @property
    def whose(self) -> str:
        """Whose weights they are, in words: a run's, its workers' average, a checkpoint's."""

    @property
    def note(self) -> str:
        """Why they are not read as was asked for; empty where they are."""

    def newest(self) -> int:
        """Version (updates applied) of the newest readable weights; cheap, never blocks."""

    def has_newer(self) -> bool:
        """Whether there are newer weights than those loaded last; cheap, never blocks."""

    def load(self, backend: WeightHolder) -> Loaded:
        """Fill the backend's parameters from the newest weights; states that it made stay valid.

        Raises:
            CheckpointError: they were found not to be finite; the backend must not be used before
                another load.
        """

    def aged(self, loaded: Loaded) -> Loaded:
        """Return what was loaded with its age as it is now."""

    def ended(self) -> bool:
        """Whether the run does not train any more: the last weights stay."""

    def close(self) -> None:
        """Let go of the run."""


class CheckpointWeights:
    """The weights of a checkpoint: never newer than they are."""

    def __init__(
        self,
        path: Path,
        model: ModelConfig,
        tensors: Mapping[str, NDArray[Any]],
        *,
        version: int | None,
        mode: str = READ_MODES[0],
        weights: str = "float32",
        note: str = "",
    ) -> None:
        """Wrap an opened checkpoint.

        Args:
            path: the checkpoint, for messages.
            model: its architecture.
            tensors: name -> array, as `Backend.load` takes them.
            version: updates applied when it was saved; None where that is not known.
            mode: the read mode that was asked for; all are the same here.
            weights: what backends hold, as `Backend.load` takes it.
            note: why this is read and not the run itself.
        """
        self.note = note
        self.mode = checked_mode(mode)
        run = run_of(path)
        self.whose = f"checkpoint {path.name}" + ("" if run is None else f" of run {run.name}")
        self._path, self._model, self._tensors = path, model, tensors
        self.counts_updates = version is not None
        self._version, self._weights = version or 0, weights

    def newest(self) -> int:
        """The checkpoint's version."""
        return self._version

    def has_newer(self) -> bool:
        """False."""
        return False

    def load(self, backend: WeightHolder) -> Loaded:
        """Fill the backend; see `WeightSource.load`."""
        not_finite = backend.load(self._model, self._tensors, weights=self._weights)
        refuse_not_finite(not_finite, self._path)
        return Loaded(version=self._version, oldest=self._version)

    def aged(self, loaded: Loaded) -> Loaded:
        """The same: nothing newer is known."""
        return loaded

    def ended(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Let go of the files."""
        self._tensors = {}


class NewestOfRun:
    """The newest weights of a run, however often it ends and is resumed: a source of sources.

    It begins with one of them. When that has ended, it looks now and then for the next: the run
    that trains again, or a newer checkpoint of it.
    """

    def __init__(
        self, source: WeightSource, next_after: Callable[[WeightSource], WeightSource | None]
    ) -> None:
        """Begin with a source, which belongs to this object from now on.

        Args:
            source: the newest there is.
            next_after: opens what has become newer than a source that has ended; it returns soon.
        """
        self._source, self._next_after = source, next_after
        self._is_other = False  # than the one that was loaded last
        self._not_before = 0.0

    @property
    def mode(self) -> str:
        """One of `READ_MODES`."""
        return self._source.mode

    @property
    def whose(self) -> str:
        """Whose weights they are now, in words."""
        return self._source.whose

    @property
    def note(self) -> str:
        """Why they are not read as was asked for, where they are not."""
        return self._source.note

    @property
    def counts_updates(self) -> bool:
        """Whether versions are known."""
        return self._source.counts_updates

    def _look(self) -> None:
        """Take the next source, where this one has ended and there is one."""
        if monotonic() < self._not_before:
            return
        newer = self._next_after(self._source) if self._source.ended() else None
        self._not_before = monotonic() + LOOK_S
        if newer is not None:
            self._source.close()
            self._source, self._is_other = newer, True

    def newest(self) -> int:
        """Version of the newest readable weights."""
        return self._source.newest()

    def has_newer(self) -> bool:
        """Whether there are newer weights, or others, than those loaded last."""
        self._look()
        return self._is_other or self._source.has_newer()

    def load(self, backend: WeightHolder) -> Loaded:
        """Fill the backend; see `WeightSource.load`."""
        self._is_other = False
        return self._source.load(backend)

    def aged(self, loaded: Loaded) -> Loaded:
        """Return what was loaded with its age as it is now."""
        return self._source.aged(loaded)

    def ended(self) -> bool:
        """Whether the run does not train now."""
        return self._source.ended()

    def close(self) -> None:
        """Let go of the run."""
        self._source.close()


class Follower:
    """A backend whose weights follow a source, as its mode says.

    It can generate in the backend's place (`RecurrentModel`): then newer weights are taken before
    each token, and those of `pinned_per_sequence` not at all. Belongs to the thread of the backend.
    """

    def __init__(self, source: WeightSource, backend: Backend) -> None:
        """Load the newest weights.

        Raises:
            CheckpointError: they are not finite.
        """
        self.source, self.backend = source, backend
        self._load()
        self._not_before = 0.0  # the first also prepared the backend

    def _load(self) -> None:
        began = monotonic()
        self._loaded = self.source.load(self.backend)
        ended = monotonic()
        self._not_before = ended + (ended - began) / LOADING_PART

    def refresh(self, *, in_sequence: bool) -> Loaded:
        """Take newer weights if there are some and it is their time; to be called between tokens.

        Loading takes a tenth of the time at most, so a large model changes less often than a run
        publishes it.

        Args:
            in_sequence: whether an answer goes on that weights of `pinned_per_sequence` belong to.

        Returns:
            What the next token is computed with.
        """
        is_pinned = in_sequence and self.source.mode == "pinned_per_sequence"
        if not is_pinned and monotonic() >= self._not_before and self.source.has_newer():
            self._load()
        return self._loaded

    def loaded(self) -> Loaded:
        """What the backend holds, with its age as it is now."""
        return self.source.aged(self._loaded)

    def logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """As `Backend.logits`, with the newest weights; the state may be of older ones."""
        self.refresh(in_sequence=True)
        return self.backend.logits(tokens, state)

    def stack_states(self, states: Sequence[State]) -> State:
        """As `Backend.stack_states`."""
        return self.backend.stack_states(states)

    def take_state(self, state: State, rows: Sequence[int]) -> State:
        """As `Backend.take_state`."""
        return self.backend.take_state(state, rows)


def checked_mode(mode: str) -> str:
    """Return a read mode.

    Raises:
        ConfigError: there is no such mode.
    """
    if mode not in READ_MODES:
        raise ConfigError(f"no read mode {mode!r}; choose from {', '.join(READ_MODES)}")
    return mode
