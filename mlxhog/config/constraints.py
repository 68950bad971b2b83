"""Constraints between options of a training run: what is wrong, each with the way out.

Those of a strategy, an optimizer or a schedule are in its class (`Choice.run_constraints`). An
option that has an effect beside some values of another one only says so (`Option.requires`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlxhog.config.components import Constraints, broken
from mlxhog.config.options import Option, options
from mlxhog.config.sources import specs_of, yaml_values_of
from mlxhog.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig


def of(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Yield (option, what is wrong and the way out) of a configuration with legal values.

    Raises:
        ConfigError: a constraint of a user's own class names something that is not there.
    """
    values = yaml_values_of(config)
    specs = specs_of(type(config), values)
    for name, spec in specs.items():
        if unknown := min(spec.requires.keys() - specs.keys(), default=""):
            near = did_you_mean(unknown, specs)
            raise ConfigError(f"{name} requires {unknown!r}, which is no option{near}")
        for other in spec.unmet(values):
            value = values.get(name)
            if value is not False and value not in (
                spec.to_yaml_value(spec.default),
                "none",
                "off",
                None,
            ):
                wanted = "|".join(spec.requires[other])
                is_for = f"is for {other}={wanted}, and {other} is {values[other]}"
                lack = is_for if wanted else f"needs {other}"
                yield name, f"{lack}; set that, or leave {name} out"
    yield from broken(_of_run(config))
    for choice in (config.strategy, config.optimizer, config.schedule):
        if choice is not None:
            yield from choice.broken("run_constraints", config)


def _of_run(config: TrainConfig) -> Constraints:
    """Constraints between the options of the run itself, and facts of its strategy."""
    strategy, way, resume, follow = (
        config.strategy,
        config.determinism,
        config.resume,
        config.follow,
    )
    waits = strategy is not None and not strategy.is_lock_free
    alone = strategy is not None and strategy.one_process
    rounds, record = way == "rounds", way in ("record", "replay")
    return (
        (follow and waits, "follow",
         "is for lock-free workers, which take any batch; set strategy=hogwild, without "
         "async_after and blocks=disjoint"),
        (config.cluster and (alone or waits), "cluster",
         "adds to parameters that workers train lock-free; set strategy=hogwild"),
        (config.cluster and config.cluster_limit_s <= config.round_every, "cluster_timeout",
         f"{config.cluster_timeout} s, not above round_every, {config.round_every} s, so a "
         "machine could not wait for the next round of the others; set six times that"),
        (config.cluster and way != "none", "cluster",
         "its rounds follow the clock, so no run is deterministic; leave determinism out"),
        (config.cluster and follow, "cluster",
         "gives machines batches of one text; leave follow or cluster out"),
        (config.gpu_write.startswith("metal") and config.write not in ("auto", "cas"), "write",
         f"is {config.write}, but beside gpu_write={config.gpu_write} every CPU writer has to use "
         "cas; set write=auto, or gpu_write=cpu"),
        (not config.live_every.on and config.live != "off", "live_every",
         "off, so readers would get no snapshot; set live=off as well"),
        (config.init_from and resume, "init_from",
         f"resume {resume} has its own weights; leave one of the two out"),
        *((value and config.embedding_init != "auto", "embedding_init",
           f"{config.embedding_init}, but {origin} {value} has embeddings; leave one of the two "
           "out")
          for origin, value in (("init_from", config.init_from), ("resume", resume))),
        *((config.epochs and value, "epochs",
           f"is {config.epochs}, and {budget} {value} is a budget, too; leave one of them out, or "
           "set it to none")
          for budget, value in (
            ("steps", config.steps), ("tokens", config.tokens), ("time", config.time))),
        (config.epochs and follow, "epochs",
         "a followed folder never ends, so it has no epochs; leave epochs out"),
        *((rounds and value, "determinism",
           "rounds, but with a time budget or a followed folder each run ends differently; give "
           "--steps or --tokens instead") for value in (config.time, follow)),
        (rounds and not (config.has_budget or follow or resume), "determinism",
         "rounds needs a budget in steps or tokens; add --steps"),
        *((rounds and value is not None, "determinism",
           f"rounds, but {name} ends each run at another step; leave {name} out")
          for name, value in (
            ("patience", config.patience), ("stop_at_loss", config.stop_at_loss))),
        (rounds and config.batch_size is None and not resume, "determinism",
         "rounds, but batch_size=auto follows a measurement, which varies; give --batch-size a "
         "number"),
        *((record and is_wrong, "determinism", f"{way}, but {why}") for is_wrong, why in (
            (strategy is not None and not strategy.recorded,
             f"strategy is {strategy}; leave it out, or take determinism=rounds, which needs no "
             "record"),
            (config.read == "live",
             "live reads see single elements change, which a record cannot hold; set "
             "read=snapshot"),
            (config.write not in ("auto", "lossless"),
             f"write is {config.write}: without stripe locks the order of writes to an element is "
             "unknown; set write=lossless"),
            (config.gpu_write != "cpu", f"gpu_write is {config.gpu_write}; set gpu_write=cpu"),
            (follow, "a record has no streamed data; leave follow out"),
            (config.overlap,
             "a record has the read, the gradient and the update of a worker in sequence; leave "
             "overlap out"),
            (resume,
             "a record begins with its run; add --determinism none to resume without one, and the "
             "record stays as it is"))),
    )  # fmt: skip


def idle(specs: Mapping[str, Option], values: Mapping[str, object]) -> list[str]:
    """Return the options that have no effect beside values, as people write them, of others."""
    return [name for name, spec in specs.items() if any(spec.unmet(values))]


def settled(config: type, **values: object) -> dict[str, Any]:
    """Return these values of a configuration, and the defaults of options without effect then."""
    specs = options(config)
    return {**{name: specs[name].default for name in idle(specs, values)}, **values}


def implied_strategy(config: TrainConfig) -> str | None:
    """The strategy that other options of the run require, if it is open."""
    if config.determinism == "rounds":
        return "sync"
    named = (config.follow, config.max_workers, config.cluster)
    is_lock_free = config.determinism != "none" or config.overlap or named != (None,) * 3
    return "hogwild" if is_lock_free or "live" == config.read or "racy" == config.write else None
