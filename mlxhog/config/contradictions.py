"""Contradictions between options of a training run, each with the way out.

Those of a strategy are in its class.
"""

from __future__ import annotations

from typing import Any

from mlxhog.config.choices import Rules, broken, rules_of
from mlxhog.config.options import options
from mlxhog.config.sources import spelt_values_of

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


RULES: Rules = (
    *((name, f"{other}={'|'.join(off)} & {name} & {name}!=1s",
       f"{other} is {{{other}}}, {reason}, or leave {name} out")
      for name, (other, off, reason) in _SWITCHED_OFF.items()),
    ("follow", "follow & not is_lock_free",
     "is for lock-free workers, which take any batch; set strategy=hogwild, without async_after "
     "and blocks=disjoint"),
    *(("cluster", f"cluster & {why}",
       "adds to parameters that workers train lock-free; set strategy=hogwild")
      for why in ("one_process", "not is_lock_free")),
    ("cluster_timeout_s", "cluster & cluster_timeout_s & waits_too_short",
     "{cluster_timeout_s} s, not above round_every, {round_every} s, so a machine could not wait "
     "for the next round of the others; set six times that"),
    ("cluster", "cluster & determinism!=none",
     "its rounds follow the clock, so no run repeats; leave determinism out"),
    ("cluster", "cluster & follow",
     "gives machines batches of one text; leave follow or cluster out"),
    ("write", "gpu_write=metal* & write!=auto|cas",
     "is {write}, but beside gpu_write={gpu_write} every CPU writer has to use cas; set "
     "write=auto, or gpu_write=cpu"),
    ("live_every", "live_every=off & live!=off",
     "off, so readers would get no copy; set live=off as well"),
    ("reset_optimizer", "reset_optimizer & not resume",
     "is for a run that is resumed; add --resume"),
    ("resize_vocab", "resize_vocab & not init_from",
     "is for a run that begins with the weights of another; add init_from"),
    ("init_from", "init_from & resume",
     "resume {resume} has its own weights; leave one of the two out"),
    *(("epochs", f"epochs & {budget}",
       f"is {{epochs}}, and {budget} {{{budget}}} is a budget, too; leave one of them out, or set "
       "it to none") for budget in ("steps", "tokens", "time")),
    ("epochs", "epochs & follow", "a followed folder has no last text; leave epochs out"),
    *((name, f"{name} & eval_every=off",
       "needs held-out evaluations, and eval_every is off; set eval_every, such as 10s, or 100 for "
       "steps") for name in ("patience", "stop_at_loss", "keep_best")),
    *(("determinism", f"determinism=rounds & {name}",
       "rounds, but a budget in time or a followed folder ends each run differently; give --steps "
       "or --tokens instead") for name in ("time", "follow")),
    ("determinism",
     "determinism=rounds & not has_budget & not follow & not resume",
     "rounds needs a budget in steps or tokens; add --steps"),
    *(("determinism", f"determinism=rounds & {name}",
       f"rounds, but {name} ends each run at another step; leave {name} out")
      for name in ("patience", "stop_at_loss")),
    ("determinism", "determinism=rounds & batch_size=auto & not resume",
     "rounds, but batch_size=auto follows a measurement, which no run repeats; give --batch-size a "
     "number"),
    *(("determinism", f"determinism=record|replay & {wrong}", "{determinism}, but " + why)
      for wrong, why in (
        ("not recorded",
         "strategy is {spelt}; leave it out, or take determinism=rounds, which needs no record"),
        ("read=live",
         "live reads see single elements change, which no record has; set read=snapshot"),
        ("write!=auto|lossless",
         "write is {write}: without stripe locks the order of writes to an element is unknown; set "
         "write=lossless"),
        ("gpu_write!=cpu", "gpu_write is {gpu_write}; set gpu_write=cpu"),
        ("follow", "a record has no arriving text; leave follow out"),
        ("overlap",
         "a record has the read, the gradient and the step of a worker one after the other; leave "
         "overlap out"),
        ("resume",
         "a record begins with its run; add --determinism none to resume without one, and the "
         "record stays as it is"),
      )),
)  # fmt: skip


def of(config: Any) -> list[tuple[str, str]]:
    """Pairs (option, contradiction and the way out) of a `TrainConfig` with legal values."""
    values = spelt_values_of(config) | {
        "spelt": config.strategy,
        "shared": config.shares_moments,
        "has_budget": config.has_budget,
        "waits_too_short": config.waits_too_short,
    }
    alone = (
        (name, f"not cluster & {name}!={spec.spell(spec.default)}|none",
         "is for a run with other machines; add --cluster HOST:PORT as cluster start prints it")
        for name, spec in options(type(config)).items()
        if spec.group == "cluster" and name != "cluster"
    )  # fmt: skip
    own = () if config.strategy is None else rules_of(type(config.strategy))
    return list(broken((*RULES, *alone, *own), values, config.strategy))


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


_IMPLIED: Rules = (
    ("sync", "determinism=rounds", ""),
    *(("hogwild", term, "") for term in (
        "determinism=record|replay", "read=live", "write=racy", "follow", "max_workers", "cluster",
        "overlap",
    )),
)  # fmt: skip


def implied_strategy(config: Any) -> str | None:
    """The strategy that other options of the run require, if it is open."""
    return next((name for name, _ in broken(_IMPLIED, spelt_values_of(config))), None)
