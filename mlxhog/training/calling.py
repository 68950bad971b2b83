"""A run as a program or the command line asks for it: options of several sources, merged."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlxhog.config import contradictions
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import Assignment, read_yaml, resolve, written_in
from mlxhog.errors import ConfigError
from mlxhog.report.plain import observer as shown_on

if TYPE_CHECKING:
    from mlxhog.report.metrics import Progress, Result

BUDGETS = ("steps", "iters", "tokens", "time", "epochs")
ORIGINS = ("init_from", "resize_vocab")
CALL = "train()"


def train(
    config: TrainConfig | str | Path | None = None,
    *,
    observer: Callable[[Progress], None] | Literal["auto"] | None = "auto",
    **values: object,
) -> Result:
    """Train a model, lock-free by default, and leave a run directory.

        train(data="notes/", time=60)
        train("conf.yaml", lr=1e-3)
        train(resume="latest", steps=1000)
        train(TrainConfig(data="notes/", time=60))

    A worker process does not import the program that calls this, so a script needs no
    `if __name__ == "__main__"`.

    Args:
        config: the whole configuration, or a YAML file of options.
        observer: what shows how the run goes: "auto" is a live table on a terminal and in a
            notebook, and lines to stderr elsewhere; None is nothing; or a function, which gets a
            `Progress` about twice a second from this thread and must not block. After an OSError,
            such as a closed pipe, it is not called again.
        values: options by their names in docs/options.md, which win over the YAML file; a run that
            is resumed brings its own.

    Returns:
        The result; its `status` is "done", "interrupted", "diverged", or "unsaved" where the last
        checkpoint could not be written.

    Raises:
        ConfigError: all that is wrong with the options, with the nearest name of an unknown one.
        DataError, CheckpointError, RunError: other bad input, before anything is started.
        EnvironmentLacks: memory, disk space or a backend is missing.
        WorkerFailed: a worker died more often than allowed; the last checkpoint is named.
    """
    resolved = _resolved(config, written_in(CALL, values))
    _load_layers(config, values)
    if callable(observer) or observer is None:
        return execute(resolved, observer)
    if observer != "auto":
        raise ConfigError(
            f"{CALL}: observer is {observer!r}, expected 'auto', None, or a function that takes a "
            "Progress"
        )
    with shown_on(sys.stderr) as show:
        return execute(resolved, show)


def execute(config: TrainConfig, observer: Callable[[Progress], None] | None) -> Result:
    """Train; see `mlxhog.training.trainer.train`.

    Trainer and models take a while to import. Wrong input is answered before, and a new run is
    there, so that `latest` is this run for every other command.
    """
    if config.init_from is not None:
        from mlxhog.training.origin import pinned

        config = pinned(config)  # which may be `latest`: not the new one
    from mlxhog.checkpoint.creation import new_run  # and NumPy, which no wrong option waits for

    with new_run(config) as run:
        from mlxhog.training.trainer import train

        return train(config, observer=observer, run=run)


def _load_layers(config: TrainConfig | str | Path | None, values: Mapping[str, object]) -> None:
    """Load the files of layers that the program itself names; a YAML file only remembers some.

    Raises:
        ConfigError: one cannot be loaded, or defines no layer.
    """
    named = config.layers_from if isinstance(config, TrainConfig) else values.get("layers_from")
    if named is not None:
        from mlxhog.models.mad.extensions import load_named  # imports NumPy, most need none

        load_named(named)


def _resolved(config: TrainConfig | str | Path | None, values: list[Assignment]) -> TrainConfig:
    if isinstance(config, TrainConfig):
        if values:
            raise ConfigError(
                f"{CALL}: {values[0].name} stands beside a TrainConfig; give every option to "
                "TrainConfig, or every option to train"
            )
        return config
    if config is None:
        return configured([values])
    if not isinstance(config, str | os.PathLike):
        raise ConfigError(
            f"{CALL}: the configuration is a {type(config).__name__}, expected a TrainConfig, a "
            "YAML file, or options by name, such as train(data='notes/', time=60)"
        )
    file = Path(config)
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"{CALL}: {os.fspath(config)!r} is no YAML file of options; a text is given by name: "
            f"train(data={os.fspath(config)!r})"
        )
    return configured([read_yaml(file, named=True), values])


def configured(layers: Sequence[list[Assignment]], problems: Iterable[str] = ()) -> TrainConfig:
    """Merge defaults, the run that is resumed where one is, and layers, the weakest first.

    Raises:
        ConfigError: everything that is wrong in any of them, after `problems`.
        RunError: there is no such run to resume.
    """
    messages, layers = list(problems), list(layers)
    resumed = _last(layers, "resume")
    if resumed is not None and not messages:
        layers.insert(0, _of_run(resumed, layers))
    return resolve(TrainConfig, layers, messages)


def _last(layers: Iterable[Iterable[Assignment]], name: str) -> str | None:
    """The strongest value of a text option, before defaults."""
    values = [entry.value for layer in layers for entry in layer if entry.name == name]
    return None if not values or values[-1] in (None, "none") else str(values[-1])


def _of_run(spec: str, layers: list[list[Assignment]]) -> list[Assignment]:
    """The stored options of a run.

    Without its budget: what is left of it, the checkpoint says. Without the weights it began with,
    since it has its own. Without the options of an optimizer or schedule that does not go on, and
    of a strategy where another one does; of another optimizer the step size is another, too. What
    was left to "auto" is decided anew where optimizer, strategy or workers are others.
    """
    from mlxhog.checkpoint.checkpoint import run_of

    root = _last(layers, "out") or str(options(TrainConfig)["out"].default)
    run = run_of(spec, Path(root))
    stored = read_yaml(run.config_path)
    left_out, changed = {*BUDGETS, *ORIGINS}, set()
    for kind in contradictions.OWNERS:
        choice, own = _last(layers, kind), _last([stored], kind)
        if choice in (None, "auto"):
            choice = own
        if choice != own:
            changed.add(kind)
        elif kind == "strategy":
            continue
        left_out.update(contradictions.of_others(kind, str(choice)))
    if _last(layers, "workers") not in (None, _last([stored], "workers")):
        changed.add("workers")
    if "optimizer" in changed:
        left_out |= {"lr", "learning_rate"}
    if changed - {"schedule"} or _last([stored], "strategy") == "auto":
        left_out.update(run.automatic())
    return [value for value in stored if value.name not in left_out]
