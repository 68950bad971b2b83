"""The Python API `train`, and the merging of options from several sources."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlxhog.base.output import say_once
from mlxhog.base.paths import expanded
from mlxhog.base.processes import require_children
from mlxhog.config import plugins
from mlxhog.config.components import OPTIMIZERS, STRATEGIES, ComponentRegistry
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.options import Option, options, without_effect
from mlxhog.config.sources import ConfigSource, of_keywords, read_yaml, specs_of
from mlxhog.config.train_options import INITIAL_WEIGHTS
from mlxhog.display.views import observer as shown_on
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run
    from mlxhog.display.views import Observer
    from mlxhog.progress import Progress, Result

BUDGETS = ("steps", "iters", "tokens", "time", "epochs")
CALL = "train()"
CHOSEN = {"optimizer": OPTIMIZERS, "strategy": STRATEGIES}
"""Choices that a resumed run supplies if they are open."""


def train(
    config: TrainConfig | str | Path | None = None,
    *,
    observer: Observer[Progress] | Literal["auto"] | None = "auto",
    **values: object,
) -> Result:
    """Train a model, and leave a run directory.

        train(data="notes/", time=60)
        train("conf.yaml", lr=1e-3)
        train(resume="latest", steps=1000)
        train(TrainConfig(data="notes/", time=60))

    A worker process does not import the program that calls this, so a script needs no
    `if __name__ == "__main__"`.

    Args:
        config: the whole configuration of a new run, or a YAML file of options.
        observer: shows the progress: "auto" is a live table on a terminal and in a notebook, and
            lines to stderr elsewhere; None shows nothing; a function gets a `Progress` about twice
            a second from this thread and must not block. After an OSError, such as a closed pipe,
            it is not called again.
        values: options by their names in `mlxhog options`, which win over the YAML file; a resumed
            run has its own.

    Returns:
        The result; its `status` is "done", "interrupted", "diverged", or "unsaved" where the last
        checkpoint could not be written.

    Raises:
        ConfigError: every error in the options, with the nearest name for an unknown one.
        DataError, CheckpointError, RunError: other bad input, before anything is started.
        EnvironmentLacks: memory, disk space or a backend is missing.
        WorkerFailed: a worker died more often than allowed; the last checkpoint is named.
    """
    named = config.plugin if isinstance(config, TrainConfig) else values.get(plugins.KEY)
    plugins.load_all(named)  # not those of a YAML file
    resolved = _resolved(config, of_keywords(CALL, values))
    if callable(observer) or observer is None:
        return execute(resolved, observer)
    if observer != "auto":
        raise ConfigError(
            f"{CALL}: observer is {observer!r}, expected 'auto', None, or a function that takes a "
            "Progress"
        )
    with shown_on(sys.stderr) as show:
        return execute(resolved, show)


def execute(config: TrainConfig, observer: Observer[Progress] | None) -> Result:
    """Train; see `mlxhog.training.supervisor.training.train`.

    Trainer and models take a while to import. Bad input is reported before that, and the new run
    is created, so that `latest` is this run for every other command.
    """
    require_children()
    check_start(config)
    if config.init_from is not None:
        from mlxhog.training.plan.resume import located

        config = located(config)  # before the new run becomes `latest`
    from mlxhog.checkpoint.new_run import new_run  # imports NumPy; bad options are reported before

    with new_run(config) as run:
        from mlxhog.training.supervisor.training import train

        return train(config, observer=observer, run=run)


def check_start(config: TrainConfig) -> None:
    """Refuse, as a dry run does, what every plan may have and no run of this machine can.

    Raises:
        ConfigError: it is a replay.
        EnvironmentLacks: a cluster needs torchft.
        RunError: the run's name is not legal, or the folder of runs is a file.
    """
    if config.determinism == "replay":
        raise ConfigError("determinism: to replay a run use mlxhog replay RUN")
    if config.cluster is not None:
        from mlxhog.cluster.rendezvous import check_torchft

        check_torchft()
    if config.resume is None:
        from mlxhog.checkpoint.new_run import default_name
        from mlxhog.checkpoint.run_files import check_place

        check_place(Path(config.runs_dir), config.name or default_name(config.data))


def _resolved(config: TrainConfig | str | Path | None, values: ConfigSource) -> TrainConfig:
    if isinstance(config, TrainConfig):
        if values:
            raise ConfigError(
                f"{CALL}: {next(iter(values))} stands beside a TrainConfig; give every option to "
                "TrainConfig, or every option to train"
            )
        if config.resume is not None:
            raise ConfigError(
                f"{CALL}: a TrainConfig with resume has every option, and those of the run would "
                f"not count; give them by name: train(resume={config.resume!r}, steps=1000)"
            )
        return config
    if config is None:
        return configured([values])
    if not isinstance(config, str | os.PathLike):
        raise ConfigError(
            f"{CALL}: the configuration is a {type(config).__name__}, expected a TrainConfig, a "
            "YAML file, or options by name, such as train(data='notes/', time=60)"
        )
    if Path(config).suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"{CALL}: {os.fspath(config)!r} is no YAML file of options; a text is given by name: "
            f"train(data={os.fspath(config)!r})"
        )
    return configured([read_yaml(expanded(config), named=True), values])


def configured(layers: Sequence[ConfigSource]) -> TrainConfig:
    """Merge defaults, the options of a resumed run, and layers, the weakest first.

    `resume` becomes a path, so that `latest` stays the run whose options these are.

    Raises:
        ConfigError: every error in any of them.
        RunError: the run to resume does not exist.
    """
    resumed = _last(layers, "resume")
    if resumed is not None:
        unsettled = [
            kind for kind in CHOSEN.values()
            if any(_is_open(kind.title, one) for one in _values(layers, kind.title)[-1:])
        ]  # fmt: skip
        layers = [
            {name: one for name, one in layer.items() if not _is_open(name, one[0])}
            for layer in layers
        ]
        name, own = _of_run(resumed, layers)
        layers = [
            {**one, "resume": (name, one["resume"][1])} if "resume" in one else one
            for one in (own, *layers)
        ]
        for kind in unsettled:
            if kept := _name(layers, kind):
                say_once(f"{kind.title} auto: the resumed run keeps {kept}; name another to change")
    return train_config(layers)


def _values(layers: Iterable[ConfigSource], *names: str) -> list[object]:
    """The values of an option, by any of its names, the weakest first; defaults are none."""
    return [layer[name][0] for layer in layers for name in names if name in layer]


def _last(layers: Iterable[ConfigSource], name: str) -> str | None:
    """The strongest value of a text option, before defaults."""
    *_, value = None, *_values(layers, name)
    return None if value in (None, "none") else str(value)


def _needed(layers: Iterable[ConfigSource], spec: Option) -> str | None:
    """The strongest value of an option that others need, before defaults."""
    values = _values(layers, spec.flat, *spec.aliases)
    if not values or (values[-1] is None and spec.type is str):
        return None
    try:
        return str(spec.convert(values[-1]))
    except ValueError:  # which merging the layers reports
        return str(values[-1])


def _is_open(name: str, value: object) -> bool:
    """Whether the value leaves the optimizer or the strategy to the resumed run."""
    return name in CHOSEN and value in (None, "auto")


def _name(layers: Iterable[ConfigSource], kind: ComponentRegistry) -> str | None:
    """The name of the strongest choice of a kind that is not open, before defaults."""
    values = [v for v in _values(layers, kind.title) if not _is_open(kind.title, v)]
    try:
        return None if not values else kind.parts(values[-1])[0]
    except ConfigError:  # which merging the layers reports
        return None


def _of_run(spec: str, layers: list[ConfigSource]) -> tuple[str, ConfigSource]:
    """The lasting name of a run, and its stored options that a resume inherits.

    Its budget is not inherited: the checkpoint holds the rest. Nor are its initial weights, since
    it has its own.
    """
    from mlxhog.checkpoint.run import find, lasting_name

    root = expanded(_last(layers, "runs_dir") or str(options(TrainConfig)["runs_dir"].default))
    name = lasting_name(spec, root)
    run = find(name, root)
    run.refuse_links()
    stored = inherited(run, layers, {*BUDGETS, *INITIAL_WEIGHTS})
    for own in stored.keys() & {"model", "tokenizer"}:  # the checkpoint has both
        if _is_lost(str(stored[own][0])):
            del stored[own]
    return name, stored


def inherited(
    run: Run, layers: Sequence[ConfigSource], left_out: Set[str] = frozenset()
) -> ConfigSource:
    """Return the stored options of a run that hold on under layers, less some of their names."""
    stored = run.options(data=_last(layers, "data"))
    left_out = left_out | _decided_anew(stored, layers, run.automatic())
    return {name: value for name, value in stored.items() if name not in left_out}


def _decided_anew(
    stored: ConfigSource, layers: Sequence[ConfigSource], automatic: Iterable[str]
) -> set[str]:
    """Return which stored options of a run the layers over them decide anew.

    A new optimizer gets a new learning rate. A new optimizer or strategy, or new workers, decide
    the values of "auto" again, which a run stores resolved: `automatic` are their names.
    """
    left_out, changed = set[str](), set[str]()
    for chosen in CHOSEN.values():
        if _name(layers, chosen) not in (None, _name([stored], chosen)):
            changed.add(chosen.title)
    if "optimizer" in changed:
        left_out |= {"lr", "learning_rate"}
    specs, values = specs_of(TrainConfig, {}), {}
    for name in {other for spec in specs.values() for other in spec.requires}:
        value, own = _needed(layers, specs[name]), _needed([stored], specs[name])
        if (value := own if value in (None, "auto") else value) is not None:
            values[name] = value
    left_out.update(without_effect(specs, values))
    if _values(layers, "adapter")[-1:] in ([None], ["none"]):
        left_out.add("base_weights")  # it has no `requires`: `init_from` may bring the adapter
    if _last(layers, "workers") not in (None, _last([stored], "workers")):
        changed.add("workers")
    if changed or _name([stored], STRATEGIES) is None:
        left_out.update(automatic)
    return left_out


def _is_lost(spec: str) -> bool:
    """Whether a model or a tokenizer is a path that does not exist now."""
    from mlxhog.models.registry import architectures

    path = expanded(spec)
    is_path = path.name != spec or path.suffix in (".yaml", ".yml", ".json")
    return is_path and not path.exists() and path.stem not in architectures()
