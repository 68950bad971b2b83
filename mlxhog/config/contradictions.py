"""Contradictions between options of a training run, each with the way out.

Those of one strategy with options beside it are in its class (`beside`), as are those between its
numbers (`rules`).
"""

from __future__ import annotations

from typing import Any

from mlxhog.base import plain_yaml
from mlxhog.config import cluster
from mlxhog.config.choices import Rules, broken, unread
from mlxhog.config.fine_tuning import ENDS
from mlxhog.config.options import is_set, options
from mlxhog.config.rules import parse_slowdowns

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


def _lock_free(c: Any) -> Any:
    return c.strategy is not None and c.strategy.is_lock_free


def _records(c: Any) -> Any:
    return c.determinism in ("record", "replay")


def _rounds(c: Any) -> Any:
    return c.determinism == "rounds"


def _budgets(c: Any) -> str:
    """The budgets beside one of passes."""
    given = [(name, getattr(c, name)) for name in ("steps", "tokens", "time")]
    return ", ".join(f"{name} {value:g}" for name, value in given if value is not None)


RULES: Rules = (
    ("slow", lambda c: unread(parse_slowdowns, c.slow), "{x}"),
    ("set", lambda c: unread(plain_yaml.assignments, c.set), "{x}"),
    ("follow", lambda c: c.follow is not None and not _lock_free(c),
     "is for lock-free workers, which take any batch; set strategy=hogwild, without async_after "
     "and blocks=disjoint"),
    ("cluster",
     lambda c: c.cluster and c.strategy and (c.strategy.one_process or not _lock_free(c)),
     "adds to parameters that workers train lock-free; set strategy=hogwild"),
    ("cluster", lambda c: c.cluster and c.determinism != "none",
     "its rounds follow the clock, so no run repeats; leave determinism out"),
    ("cluster", lambda c: c.cluster and c.follow is not None,
     "gives machines batches of one text; leave follow or cluster out"),
    ("write", lambda c: c.gpu_write.startswith("metal") and c.write not in ("auto", "cas"),
     "is {0.write}, but beside gpu_write={0.gpu_write} every CPU writer has to use cas; set "
     "write=auto, or gpu_write=cpu"),
    ("live_every", lambda c: not c.live_every.on and c.live != "off",
     "off, so readers would get no copy; set live=off as well"),
    ("reset_optimizer", lambda c: c.reset_optimizer and c.resume is None,
     "is for a run that is resumed; add --resume"),
    ("resize_vocab", lambda c: c.resize_vocab and c.init_from is None,
     "is for a run that begins with the weights of another; add init_from"),
    ("init_from", lambda c: c.init_from is not None and c.resume is not None,
     "resume {0.resume} has its own weights; leave one of the two out"),
    ("epochs", lambda c: c.epochs is not None and _budgets(c),
     "is {0.epochs}, and {x} is a budget, too; leave one of them out, or set it to none"),
    ("epochs", lambda c: c.epochs is not None and c.follow is not None,
     "a followed folder has no last text; leave epochs out"),
    *((name, lambda c, name=name: getattr(c, name) and not c.eval_every.on,
       "needs held-out evaluations, and eval_every is off; set eval_every, such as 10s, or 100 for "
       "steps") for name in ENDS),
    ("determinism", lambda c: _rounds(c) and (c.time is not None or c.follow is not None),
     "rounds, but a budget in time or a followed folder ends each run differently; give --steps or "
     "--tokens instead"),
    ("determinism",
     lambda c: _rounds(c) and not c.has_budget and c.follow is None and c.resume is None,
     "rounds needs a budget in steps or tokens; add --steps"),
    *(("determinism", lambda c, name=name: _rounds(c) and getattr(c, name) is not None,
       f"rounds, but {name} ends each run at another step; leave {name} out")
      for name in ("patience", "stop_at_loss")),
    ("determinism", lambda c: _rounds(c) and c.batch_size is None and c.resume is None,
     "rounds, but batch_size=auto follows a measurement, which no run repeats; give --batch-size a "
     "number"),
    *(("determinism", lambda c, holds=holds: _records(c) and holds(c),
       "{0.determinism}, but " + why) for holds, why in (
        (lambda c: c.strategy is not None and not c.strategy.recorded,
         "strategy is {0.strategy}; leave it out, or take determinism=rounds, which needs no "
         "record"),
        (lambda c: c.read == "live",
         "live reads see single elements change, which no record has; set read=snapshot"),
        (lambda c: c.write not in ("auto", "lossless"),
         "write is {0.write}: without stripe locks the order of writes to an element is unknown; "
         "set write=lossless"),
        (lambda c: c.gpu_write != "cpu", "gpu_write is {0.gpu_write}; set gpu_write=cpu"),
        (lambda c: c.follow is not None, "a record has no arriving text; leave follow out"),
        (lambda c: c.overlap,
         "a record has the read, the gradient and the step of a worker one after the other; leave "
         "overlap out"),
        (lambda c: c.resume is not None,
         "a record begins with its run; add --determinism none to resume without one, and the "
         "record stays as it is"),
      )),
)  # fmt: skip


def of(config: Any) -> list[tuple[str, str]]:
    """Pairs (option, contradiction and the way out) of a `TrainConfig` with legal values."""
    pairs = []
    for name, (other, off, reason) in _SWITCHED_OFF.items():
        choice = str(getattr(config, other))
        unused = choice in off and is_set(config, name)
        if unused and (name != "live_every" or config.live_every.on):  # both off is no fault
            pairs.append((name, f"{other} is {choice}, {reason}, or leave {name} out"))
    if config.strategy is not None:
        pairs += config.strategy.contradicted_by(config)
    return [*pairs, *broken(cluster.RULES + RULES, config)]


def of_others(kind: str, choice: str) -> tuple[str, ...]:
    """The options that have no effect beside a value of another one.

    Args:
        kind: one of `CHOICES`.
        choice: its value.
    """
    every = _SWITCHED_OFF.items()
    return tuple(name for name, (one, off, _) in every if one == kind and choice in off)


def choosing(config: type, **choices: str) -> dict[str, Any]:
    """Changes to a configuration that set options of `CHOICES`.

    They are these values, and the defaults of the options that have no effect beside them.
    """
    names = [name for kind, choice in choices.items() for name in of_others(kind, choice)]
    return {**{name: options(config)[name].default for name in names}, **choices}


def implied_strategy(config: Any) -> str | None:
    """The strategy that other options of the run require, if it is open."""
    if config.determinism == "rounds":
        return "sync"
    lock_free = (
        _records(config)
        or config.read == "live"
        or config.write == "racy"
        or config.follow is not None
        or config.max_workers is not None
        or config.cluster is not None
        or config.overlap
    )
    return "hogwild" if lock_free else None
