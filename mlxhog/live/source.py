"""Sources of a text generator's weights: a running run, or a checkpoint that stays as it is.

    source, model = open_source("latest", mode="double_buffer", ...)     # `opening.py`
    follower = Follower(source, model.backend)
    loaded = follower.refresh(in_sequence=False)                         # between two tokens

A generator asks between tokens whether there are newer weights, and takes them then; nobody waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    mode: str
    """One of `READ_MODES`."""

    whose: str
    """Whose weights they are, in words: a run's, the average of its workers' own, a checkpoint."""

    note: str
    """What the user should know of how they are read; empty where it is as was asked for."""

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
        version: int,
        mode: str = READ_MODES[0],
        weights: str = "float32",
        note: str = "",
    ) -> None:
        """Wrap an opened checkpoint.

        Args:
            path: the checkpoint, for messages.
            model: its architecture.
            tensors: name -> array, as `Backend.load` takes them.
            version: updates applied when it was saved; 0 where that is not known.
            mode: the read mode that was asked for; all are the same here.
            weights: what backends hold, as `Backend.load` takes it.
            note: why this is read and not the run itself.
        """
        self.note = note
        self.mode = checked_mode(mode)
        run = run_of(path)
        self.whose = f"checkpoint {path.name}" + ("" if run is None else f" of run {run.name}")
        self._path, self._model, self._tensors = path, model, tensors
        self._version, self._weights = version, weights

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
