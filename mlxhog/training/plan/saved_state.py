"""The trainer's state in a checkpoint, as `state.dump` writes it: its types and ranges.

The digest of `state.json` shows damage, and not that a stranger wrote it. What `load` and the plan
read must have its type before it is used; the values of a strategy's own position are checked by
the strategy when it takes them over, in `taking_over`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from mlxhog.base import typed
from mlxhog.base.paths import quoted
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.run_files import BestScore
from mlxhog.data.batches import Growth
from mlxhog.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class _Spent:
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The budget as it was asked for."""

    steps: int | None
    tokens: int | None
    time: float | None
    epochs: int | None


@dataclass(frozen=True, kw_only=True)
class _Left:
    """What is left of the budget; None has no limit."""

    steps: int | None
    tokens: int | None
    seconds: float | None
    batches_per_step: float = 1.0
    steps_before: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _SavedPosition:
    """A `Position` in a text."""

    epoch: int
    watermark: int
    done: tuple[int, ...]
    torn: int
    n: int


@dataclass(frozen=True, kw_only=True)
class _Text:
    """Size of the training text, and when it grew in the present epoch."""

    documents: int
    rows: int
    grown: tuple[Growth, ...]


@dataclass(frozen=True, kw_only=True)
class _SavedPart:
    asked_bytes: int


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """State that every checkpoint of a run has, and some that it may have."""

    version: int
    optimizer: str
    strategy: Mapping[str, str]
    regime: str | None
    used: _Spent
    budget: _Asked
    left: _Left
    over: bool
    ended: str | None
    network_bytes: int
    validation: _SavedPart
    best: BestScore | None
    followed: bool
    ledgers: Mapping[str, _SavedPosition]
    emulated: bool
    joined: int
    opt_steps: Mapping[int, int]
    text: _Text
    tokens_sha256: str
    val_sha256: str
    moments_since: int | None = None
    position: Mapping[str, Any] | None = None
    cluster: Mapping[str, Any] | None = None
    base: Mapping[str, str] | None = None


_MAX_COUNT = 2**53  # of anything, which no training reaches
_NEEDED = tuple(one.name for one in fields(SavedState) if one.default is MISSING)


def check(path: Path, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the state of a checkpoint has the fields of `SavedState`."""
    if lacking := [name for name in _NEEDED if name not in state]:
        raise CheckpointError(
            f"{path} has no {', '.join(lacking)}: another version of mlxhog wrote it; "
            "train with the version that wrote it, or begin a new run with its weights: mlxhog "
            f"train --init-from {quoted(str(path))}"
        )
    try:
        saved = typed.read(SavedState, state)
        counts: list[Any] = [
            saved.version, saved.network_bytes, saved.validation.asked_bytes, saved.moments_since,
            saved.text.documents, saved.text.rows,
            saved.best and saved.best.step, *saved.opt_steps.values(), *vars(saved.used).values(),
        ]  # fmt: skip
        for place in saved.ledgers.values():
            counts += [place.epoch, place.watermark, *place.done, place.torn, place.n]
        for own in (saved.position or {}).values():
            own = own if isinstance(own, list) else [own]
            counts += [number for number in own if type(number) is int]
        for count in counts:
            if not 0 <= (count or 0) < _MAX_COUNT:
                raise ValueError(f"a count is {count}; wanted one from 0 to 2^53")
        if not saved.opt_steps or min(saved.opt_steps) < 1:
            raise ValueError(f"opt_steps is {saved.opt_steps}; wanted numbers of slots from 1 on")
        if saved.left.batches_per_step <= 0:
            raise ValueError(f"left.batches_per_step is {saved.left.batches_per_step}; wanted more")
        if ("batches_per_step" in state["left"]) != ("steps_before" in state["left"]):
            raise ValueError("left has one of batches_per_step and steps_before; wanted both")
        if "strategy" not in saved.strategy:
            raise ValueError("strategy has no name")
    except ValueError as error:
        raise manifest.damaged(path, f"{manifest.NAME}: state.{error}") from error


@contextmanager
def taking_over(path: Path) -> Iterator[None]:
    """Turn errors of a strategy's own values in a checkpoint into a CheckpointError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise manifest.damaged(
            path, f"{manifest.NAME} has a position that its strategy cannot continue ({error})"
        ) from error
