"""Contradictions between options of a training run, each with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlxhog.config import fine_tuning
from mlxhog.config.options import is_set, options
from mlxhog.config.rules import parse_slowdowns
from mlxhog.files import plain_yaml

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig

_SWITCHED_OFF: dict[str, tuple[str, tuple[str, ...], str]] = {
    "live_every": ("live", ("off",), "so readers get no copies; set live=on"),
    "cpu_blas": (
        "kernels",
        ("native", "metal", "metal-emulated"),
        "which have matrix products of their own; set kernels=reference",
    ),
    "eval_tokens": ("eval_every", ("off",), "so nothing is evaluated; set eval_every"),
}
"""Options without effect beside some values of another one: that option, the values, the reason."""

CHOICES = tuple(other for other, _, _ in _SWITCHED_OFF.values())
"""Options whose values decide which other options have an effect."""


def of(config: TrainConfig) -> list[tuple[str, str]]:
    """Pairs (option, contradiction and the way out), of a configuration with legal values."""
    pairs = _of_switches(config)
    try:
        parse_slowdowns(config.slow)
    except ValueError as error:
        pairs.append(("slow", str(error)))
    try:
        plain_yaml.assignments(config.set)
    except ValueError as error:
        pairs.append(("set", str(error)))
    strategy = config.strategy
    if strategy is not None:
        pairs += strategy.beside(config)
    if config.follow is not None and not (strategy is not None and strategy.is_lock_free):
        problem = "is for lock-free workers, which take any batch; set strategy=hogwild"
        pairs.append(("follow", f"{problem}, without async_after and blocks=disjoint"))
    if config.cluster is not None:
        if strategy is not None and (strategy.one_process or not strategy.is_lock_free):
            problem = "adds to parameters that workers train lock-free; set strategy=hogwild"
            pairs.append(("cluster", problem))
        if config.determinism != "none":
            problem = "its rounds follow the clock, so no run repeats; leave determinism out"
            pairs.append(("cluster", problem))
        if config.follow is not None:
            problem = "gives machines batches of one text; leave follow or cluster out"
            pairs.append(("cluster", problem))
    if config.gpu_write.startswith("metal") and config.write not in ("auto", "cas"):
        problem = (
            f"is {config.write}, but beside gpu_write={config.gpu_write} every CPU writer has to "
            "use cas; set write=auto, or gpu_write=cpu"
        )
        pairs.append(("write", problem))
    if not config.live_every.on and config.live != "off":
        pairs.append(("live_every", "off, so readers would get no copy; set live=off as well"))
    if config.reset_optimizer and config.resume is None:
        pairs.append(("reset_optimizer", "is for a run that is resumed; add --resume"))
    pairs += fine_tuning.contradictions(config)
    return pairs + _of_determinism(config)


def of_others(kind: str, choice: str) -> tuple[str, ...]:
    """The options that have no effect beside a value of another one.

    Args:
        kind: one of `CHOICES`.
        choice: its value.
    """
    every = _SWITCHED_OFF.items()
    return tuple(name for name, (one, off, _) in every if one == kind and choice in off)


def choosing(config: type[TrainConfig], **choices: str) -> dict[str, Any]:
    """Changes to a configuration that set options of `CHOICES`.

    They are these values, and the defaults of the options that have no effect beside them.
    """
    names = [name for kind, choice in choices.items() for name in of_others(kind, choice)]
    return {**{name: options(config)[name].default for name in names}, **choices}


def implied_strategy(config: TrainConfig) -> str | None:
    """The strategy that other options of the run require, if it is open."""
    if config.determinism == "rounds":
        return "sync"
    lock_free = (
        config.determinism in ("record", "replay")
        or config.read == "live"
        or config.write == "racy"
        or config.follow is not None
        or config.max_workers is not None
        or config.cluster is not None
        or config.overlap
    )
    return "hogwild" if lock_free else None


def _of_switches(config: TrainConfig) -> list[tuple[str, str]]:
    """Options without effect, because another one switches them off."""
    pairs = []
    for name, (other, off, reason) in _SWITCHED_OFF.items():
        choice = str(getattr(config, other))
        unused = choice in off and is_set(config, name)
        if unused and (name != "live_every" or config.live_every.on):  # both off is no fault
            pairs.append((name, f"{other} is {choice}, {reason}, or leave {name} out"))
    return pairs


def _of_determinism(config: TrainConfig) -> list[tuple[str, str]]:
    """Contradictions of runs that repeat, by rounds or by a record."""
    name, pairs, strategy = "determinism", [], config.strategy
    if config.determinism == "rounds":
        if config.time is not None or config.follow is not None:
            problem = "rounds, but a budget in time or a followed folder ends each run differently"
            pairs.append((name, f"{problem}; give --steps or --tokens instead"))
        elif not config.has_budget and config.resume is None:
            pairs.append((name, "rounds needs a budget in steps or tokens; add --steps"))
        for option in ("patience", "stop_at_loss"):
            if getattr(config, option) is not None:
                problem = f"rounds, but {option} ends each run at another step"
                pairs.append((name, f"{problem}; leave {option} out"))
        if config.batch_size is None and config.resume is None:
            problem = "rounds, but batch_size=auto follows a measurement, which no run repeats"
            pairs.append((name, f"{problem}; give --batch-size a number"))
    if config.determinism not in ("record", "replay"):
        return pairs
    for wrong, problem in (
        (strategy is not None and not strategy.recorded, f"strategy is {strategy}; leave it out, "
         "or take determinism=rounds, which needs no record"),
        (config.read == "live", "live reads see single elements change, which no record has; set "
         "read=snapshot"),
        (config.write not in ("auto", "lossless"), f"write is {config.write}: without stripe "
         "locks the order of writes to an element is unknown; set write=lossless"),
        (config.gpu_write != "cpu", f"gpu_write is {config.gpu_write}; set gpu_write=cpu"),
        (config.follow is not None, "a record has no arriving text; leave follow out"),
        (config.overlap, "a record has the read, the gradient and the step of a worker one after "
         "the other; leave overlap out"),
        (config.resume is not None, "a record begins with its run; add --determinism none to "
         "resume without one, and the record stays as it is"),
    ):  # fmt: skip
        if wrong:
            pairs.append((name, f"{config.determinism}, but {problem}"))
    return pairs
