"""Sources of a text generator's weights: a run that trains, or a checkpoint.

    source, model = open_source("latest", mode="double_buffer", ...)     # `opening.py`
    follower = WeightFollower(source, model.backend)
    loaded = follower.refresh(in_sequence=False)                         # between two tokens

A generator checks between two tokens for newer weights and loads them; no worker waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from mlxhog.backends.backend import Backend
from mlxhog.backends.reader import State
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.formats import Opened
from mlxhog.checkpoint.formats.opening import refuse_not_finite
from mlxhog.checkpoint.run import run_of
from mlxhog.live import CHECKPOINT, READ_MODES
from mlxhog.optim.gradients import Float32, Int32

LOOK_S = 0.5  # seconds between two checks whether a run that has ended trains again
LOADING_PART = 0.1  # largest share of a generator's time for finding and loading newer weights


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The version of the weights that a backend holds, and their age at the time of asking."""

    version: int  # number of the last update, since initialisation, that may be in the weights
    oldest: int  # all updates up to this one are in them completely; smaller if some were going on
    age_updates: int = 0  # updates that the run applied since then
    age_s: float = 0.0  # seconds since these weights were the newest
    racy: bool = False  # whether they were read while workers wrote them

    @property
    def consistent(self) -> bool:
        """Whether the weights are the model between two updates."""
        return self.oldest == self.version and not self.racy


class WeightSource:
    """Weights that may change, for the thread of the backend that it loads into."""

    mode: str  # one of `READ_MODES`
    whose: str  # name of the run, average or checkpoint of the weights, in words
    note = ""  # why the weights are not read as requested
    counts_updates = True  # whether versions are known; foreign checkpoints have none
    successor: Callable[[int], WeightSource | None] = staticmethod(lambda version: None)
    """Called with a version after this source has ended; returns the resumed run, a checkpoint of a
    later version, or None."""

    def newest(self) -> int:
        """Version (number of updates) of the newest readable weights; cheap, never blocks."""
        raise NotImplementedError

    def has_newer(self) -> bool:
        """Whether there are newer weights than the loaded ones; cheap, never blocks."""
        return False

    def load(self, backend: Backend) -> Loaded:
        """Load the newest weights into the backend; its recurrent states stay valid.

        Raises:
            CheckpointError: the weights are not finite; the backend must not be used until another
                load succeeds.
        """
        raise NotImplementedError

    def aged(self, loaded: Loaded) -> Loaded:
        """Return what was loaded with its age as it is now."""
        return loaded

    def ended(self) -> bool:
        """Whether the run has ended, so that the weights do not change any more."""
        return True

    def close(self) -> None:
        """Let go of the run."""


class CheckpointWeights(WeightSource):
    """The weights of a checkpoint, which never change.

    Args:
        opened: the checkpoint.
        mode: the requested read mode; it makes no difference here.
        weights: dtype of the backend's weights, for `Backend.load`.
        note: why the checkpoint is read and not the run.
    """

    def __init__(self, opened: Opened, mode: str, weights: str, note: str = "") -> None:
        self._opened, self._weights, self.note = opened, weights, note
        self._tensors = opened.tensors
        self.mode = READ_MODES[0] if mode == CHECKPOINT else mode
        path, run = opened.path, run_of(opened.path)
        self.whose = f"checkpoint {path.name}" + ("" if run is None else f" of run {run.name}")
        self.counts_updates = (path / manifest.NAME).is_file()
        self._version = manifest.read(path)["step"] if self.counts_updates else 0

    def newest(self) -> int:
        """The checkpoint's version."""
        return self._version

    def load(self, backend: Backend) -> Loaded:
        """Load the weights into the backend; see `WeightSource.load`."""
        not_finite = backend.load(self._opened.config, self._tensors, weights=self._weights)
        refuse_not_finite(not_finite, self._opened.path)
        return Loaded(version=self._version, oldest=self._version)

    def close(self) -> None:
        """Release the files."""
        self._tensors = {}


class WeightFollower:
    """A backend whose weights follow a source, as the read mode allows.

    It can replace the backend in text generation (`RecurrentModel`): then it loads newer weights
    before each token, except with `pinned_per_sequence`. After the source has ended, it looks for
    the source's successor. Loads and looks take at most a tenth of the time, so a large model
    changes less often than the run publishes copies. For the thread of the backend.

    Raises:
        CheckpointError: the weights are not finite.
    """

    def __init__(self, source: WeightSource, backend: Backend) -> None:
        """Load the newest weights."""
        self.source, self.backend = source, backend
        self._load()
        # The first load also prepared the backend: its time does not count.
        self._load_after = self._look_after = 0.0

    def _load(self) -> None:
        began = monotonic()
        self._loaded = self.source.load(self.backend)
        self._replaced = False  # whether the source is another than that of the loaded weights
        ended = monotonic()
        self._load_after = ended + (ended - began) / LOADING_PART

    def has_newer(self) -> bool:
        """Whether the newest weights differ from the loaded ones."""
        began = monotonic()
        if began >= self._look_after:
            ended = self.source.ended()
            newer = self.source.successor(self.source.newest()) if ended else None
            now = monotonic()
            self._look_after = now + max(LOOK_S, (now - began) / LOADING_PART)
            if newer is not None:
                self.source.close()
                self.source, self._replaced = newer, True
        return self._replaced or self.source.has_newer()

    def refresh(self, *, in_sequence: bool) -> Loaded:
        """Load newer weights if they are due; call it between two tokens.

        Args:
            in_sequence: whether an answer is in progress, which keeps its weights in mode
                `pinned_per_sequence`.

        Returns:
            The weights of the next token.
        """
        is_pinned = in_sequence and self.source.mode == "pinned_per_sequence"
        if not is_pinned and monotonic() >= self._load_after and self.has_newer():
            self._load()
        return self._loaded

    def loaded(self) -> Loaded:
        """The weights in the backend, with their present age."""
        return self.source.aged(self._loaded)

    def logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """As `Backend.logits`, with the newest weights; the state may come from older ones."""
        self.refresh(in_sequence=True)
        return self.backend.logits(tokens, state)

    def every_logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """As `Backend.every_logits`; otherwise as `logits`."""
        self.refresh(in_sequence=True)
        return self.backend.every_logits(tokens, state)

    def stack_states(self, states: Sequence[State]) -> State:
        """As `Backend.stack_states`."""
        return self.backend.stack_states(states)

    def take_state(self, state: State, rows: Sequence[int]) -> State:
        """As `Backend.take_state`."""
        return self.backend.take_state(state, rows)
