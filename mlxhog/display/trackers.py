"""Experiment trackers beside metrics.jsonl: `--report-to tensorboard,wandb,trackio`.

    train/loss              recent mean, nats per token
    train/bits_per_byte     the same per byte of text
    train/lr                learning rate of the next update
    train/epoch             epochs, with a fraction
    train/tokens_per_s      all workers together
    eval/loss               validation, nats per token; at the scored step
    eval/bits_per_byte      the same per byte of text
    final/bits_per_byte     more validation text, at the end

Each tracker gets these and the options. None connects or asks for a login unless the user's
environment says so (WANDB_MODE=online; TRACKIO_SPACE_ID, TRACKIO_SERVER_URL). wandb writes beside
the run's folder, trackio to its own. A resumed run continues the tracker's run.
"""

import contextvars
import importlib
import importlib.util
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mlxhog.base.processes import environment
from mlxhog.display.tensorboard import TensorBoard
from mlxhog.errors import EnvironmentLacks, message_of
from mlxhog.progress import Progress

PROJECT = "mlxhog"
Points = Iterable[tuple[int, Mapping[str, float]]]
"""Steps with values by tag, in any order."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """Facts about a run for trackers."""

    folder: Path
    name: str  # the run's first name
    id: str  # unique, and the same after a resume
    config: Mapping[str, object]
    first_step: int
    resumed: bool


class Tracker(Protocol):
    """Logs one run; any method may raise any error."""

    def write(self, points: Points) -> None:
        """Add values."""

    def close(self, *, failed: bool) -> None:
        """Finish the run."""


class _Wandb:
    def __init__(self, run: TrackedRun) -> None:
        env, errors = os.environ.get, "WANDB_ERROR_REPORTING"
        with environment({errors: env(errors, "false")}):  # it would send its own errors
            wandb: Any = importlib.import_module("wandb")
            self._run = wandb.init(
                id=run.id,
                name=env("WANDB_NAME", run.name),
                project=env("WANDB_PROJECT", PROJECT),
                dir=env("WANDB_DIR", str(run.folder.parent)),  # it makes links, which runs refuse
                mode=env("WANDB_MODE", "offline"),
                config=dict(run.config),
                resume="allow",
                reinit="create_new",  # a program's own run stays
                settings=wandb.Settings(silent=True, console="off", symlink=False),
            )
        for kind in ("train", "eval", "final"):  # an evaluation is of an earlier step
            self._run.define_metric(f"{kind}/*", step_metric="step")

    def write(self, points: Points) -> None:
        for step, values in points:
            self._run.log({**values, "step": step})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    def __init__(self, run: TrackedRun) -> None:
        with redirect_stdout(io.StringIO()), _hub_offline():  # stdout may be JSON
            trackio: Any = importlib.import_module("trackio")
            # trackio ends the run of its context: a program's own run stays in the program's.
            self._context = contextvars.Context()
            self._finish = trackio.finish
            self._run = self._context.run(
                trackio.init,
                project=PROJECT,
                name=run.name,
                config=dict(run.config),
                resume="allow" if run.resumed else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, points: Points) -> None:
        for step, values in points:
            self._context.run(self._run.log, dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        with redirect_stdout(io.StringIO()):
            self._context.run(self._finish)


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Keep trackio from asking the hub for the user's name, unless the run is to be sent."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & os.environ.keys():
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": lambda run: TensorBoard(run.folder, run.first_step, run.config),
    "wandb": _Wandb,
    "trackio": _Trackio,
}
"""Name of a tracker and of its package -> tracker of a run."""


def require(names: Sequence[str]) -> None:
    """Raise EnvironmentLacks if a tracker's package is not installed."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise EnvironmentLacks(
            f"report_to {', '.join(missing)} needs a package that is not installed: python -m pip "
            f"install {' '.join(missing)}; metrics.jsonl has the same numbers without it"
        )


class Trackers:
    """The trackers of one command; `tell` gets a line for one that fails and is dropped."""

    def __init__(self, names: Sequence[str], run: TrackedRun, tell: Callable[[str], None]) -> None:
        self._open, self._step, self._tell = dict[str, Tracker](), run.first_step, tell
        for name in names:
            self._try(name, partial(self._begin, name, run))

    def write(self, progress: Progress, epoch: float | None) -> None:
        """Write training metrics after new steps, and each evaluation at its step."""
        trained = progress.step if progress.step > self._step else None
        self._step = max(self._step, progress.step)
        rows: tuple[tuple[int | None, dict[str, float | None]], ...] = (
            (
                progress.val_step,
                {"eval/loss": progress.val_loss, "eval/bits_per_byte": progress.val_bits_per_byte},
            ),
            (
                trained,
                {
                    "train/loss": progress.loss,
                    "train/bits_per_byte": progress.train_bits_per_byte,
                    "train/lr": progress.lr,
                    "train/epoch": epoch,
                    "train/tokens_per_s": progress.tokens_per_s,
                },
            ),
            (progress.step, {"final/bits_per_byte": progress.final_bits_per_byte}),
        )
        points = [
            (step, values)
            for step, row in rows
            if step is not None and (values := {k: x for k, x in row.items() if x is not None})
        ]
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.write, points))

    def close(self, *, failed: bool) -> None:
        """Finish the run in every tracker that still works."""
        while self._open:
            name, tracker = self._open.popitem()
            self._try(name, partial(tracker.close, failed=failed))

    def _begin(self, name: str, run: TrackedRun) -> None:
        self._open[name] = TRACKERS[name](run)

    def _try(self, name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # a foreign package's, of any type
            self._open.pop(name, None)
            self._tell(f"{name} gets no more metrics: {message_of(error)}; training continues")
