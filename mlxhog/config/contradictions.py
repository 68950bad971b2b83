"""Contradictions between options of a training run, each with the way out.

Those of a strategy are in its class. An option that has an effect beside some values of another one
only says so itself (`Option.needs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxhog.config.choices import STRATEGIES, Rules, broken, holds, rules_of
from mlxhog.config.options import Option, options
from mlxhog.config.sources import specs_of, spelt_values_of

RULES: Rules = (
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
    ("init_from", "init_from & resume",
     "resume {resume} has its own weights; leave one of the two out"),
    *(("embedding_init", f"embedding_init!=auto & {origin}",
       f"{{embedding_init}}, but {origin} {{{origin}}} has rows; leave one of the two out")
      for origin in ("init_from", "resume")),
    *(("epochs", f"epochs & {budget}",
       f"is {{epochs}}, and {budget} {{{budget}}} is a budget, too; leave one of them out, or set "
       "it to none") for budget in ("steps", "tokens", "time")),
    ("epochs", "epochs & follow", "a followed folder has no last text; leave epochs out"),
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
        "waits_too_short": config.cluster_limit_s <= config.round_every,
    }
    specs, without_effect = specs_of(type(config), values), list[tuple[str, str]]()
    for name in idle(specs, values):
        spec, value = specs[name], values.get(name)
        if value is not False and value not in (spec.spell(spec.default), "none", "off", None):
            other, equals, _ = spec.needs.partition("=")
            is_for = f"is for {spec.needs}, and {other} is {values[other]}"
            lack = is_for if equals else f"needs {other}"
            without_effect.append((name, f"{lack}; set that, or leave {name} out"))

    def is_elsewhere(name: str) -> bool:  # with the strategy open, also facts of strategies
        return name in specs or any(hasattr(one, name) for one in STRATEGIES.known().values())

    problems = [*without_effect, *broken(RULES, values, config.strategy, is_elsewhere)]
    for choice in (config.strategy, config.optimizer, config.schedule):
        if choice is not None:
            problems += broken(rules_of(type(choice)), values, choice, is_elsewhere)
    return problems


def idle(specs: Mapping[str, Option], values: Mapping[str, object]) -> list[str]:
    """Return the options that have no effect beside values, as people write them, of others."""
    return [
        name
        for name, spec in specs.items()
        if needed(spec) in values and not holds(spec.needs, values)
    ]


def needed(spec: Option) -> str:
    """Return the name of the option that another one needs; "" if it needs none."""
    return spec.needs.partition("=")[0]


def settled(config: type, **values: object) -> dict[str, Any]:
    """Return these values of a configuration, and the defaults of options without effect then."""
    specs = options(config)
    return {**{name: specs[name].default for name in idle(specs, values)}, **values}


def implied_strategy(config: Any) -> str | None:
    """The strategy that other options of the run require, if it is open."""
    values = spelt_values_of(config)
    if holds("determinism=rounds", values):
        return "sync"
    lock_free = "determinism=record|replay read=live write=racy follow max_workers cluster overlap"
    return "hogwild" if any(holds(term, values) for term in lock_free.split()) else None
