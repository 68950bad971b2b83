"""Options of a training run that contradict each other, each with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlxhog.config import asynchrony, fine_tuning, local_methods
from mlxhog.config.asynchrony import LATE
from mlxhog.config.local_methods import LOCAL_STRATEGIES
from mlxhog.config.options import is_set, options
from mlxhog.config.rules import Selection, parse_slowdowns
from mlxhog.files import plain_yaml

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig

FALLING_SCHEDULES = ("backoff", "inverse")
"""Step sizes that fall by the number of updates, and not by the share of the budget."""

_APOLLO = ("apollo", "apollo-mini")

OWNERS: dict[str, dict[str, tuple[str, ...]]] = {
    "strategy": {
        **local_methods.OWNERS,
        **asynchrony.OWNERS,
        "async_after": ("hogwild",),
        "sync_shares": ("sync",),
        "predict": ("serial", "hogwild", "round_robin"),
        "lr_workers": (*LATE, "round_robin"),
    },
    "optimizer": {
        "momentum": ("momentum",),
        "beta2_half_life": ("adamw", "adan", *_APOLLO, "lion", "muon", "soap"),
        "beta3": ("adan",),
        "nesterov": ("muon",),
        "orthogonalization": ("muon",),
        "orthogonalization_rows": ("muon",),
        "orthogonalization_every": ("muon",),
        "orthogonalization_dtype": ("muon",),
        "projection_rank": _APOLLO,
        "projection_scale": _APOLLO,
        "projection_every": _APOLLO,
        "projection_compat": _APOLLO,
        "precondition_every": ("soap",),
    },
    "schedule": {
        "backoff_steps": FALLING_SCHEDULES,
        "backoff_epochs": FALLING_SCHEDULES,
        "backoff_beta": ("backoff",),
    },
}
"""Options that only some strategies, optimizers or schedules take, and which."""


def of(config: TrainConfig) -> list[tuple[str, str]]:
    """Pairs (option, what it contradicts and the way out), of a configuration of legal values."""
    pairs = _of_owners(config) + _of_prediction(config)
    try:
        parse_slowdowns(config.slow)
    except ValueError as error:
        pairs.append(("slow", str(error)))
    try:
        plain_yaml.assignments(config.set)
    except ValueError as error:
        pairs.append(("set", str(error)))
    pairs += _of_strategy(config)
    pairs += asynchrony.contradictions(config) + local_methods.contradictions(config)
    lock_free = config.strategy in ("serial", "hogwild") and config.async_after == 0
    if config.follow is not None and not (lock_free and config.blocks == "all"):
        problem = "is for lock-free workers, which take any batch; set strategy=hogwild"
        pairs.append(("follow", f"{problem}, without async_after and blocks=disjoint"))
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
    return pairs + _of_optimizer(config) + _of_sparse(config) + _of_determinism(config)


def of_others(kind: str, choice: str) -> tuple[str, ...]:
    """The options that a strategy, an optimizer or a schedule does not take.

    Args:
        kind: strategy, optimizer or schedule.
        choice: its name.
    """
    return tuple(name for name, owners in OWNERS[kind].items() if choice not in owners)


def choosing(config: type[TrainConfig], **choices: str) -> dict[str, Any]:
    """Changes to a configuration that name another strategy, optimizer or schedule.

    They are the choices, and the defaults of the options that these do not take.
    """
    names = [name for kind, choice in choices.items() for name in of_others(kind, choice)]
    return {**{name: options(config)[name].default for name in names}, **choices}


def implied_strategy(config: TrainConfig) -> str:
    """The strategy, which for auto is the one that has the other options, where only one has."""
    if config.strategy != "auto":
        return config.strategy
    if config.determinism == "rounds":
        return "sync"
    lock_free = (
        config.determinism in ("record", "replay")
        or config.async_after > 0
        or config.predict in ("own", "last")
        or config.read == "live"
        or config.write == "racy"
        or config.sparsify != "none"
        or config.blocks != "all"
        or config.lr_workers in ("sqrt", "linear")
        or config.follow is not None
        or config.max_workers is not None
    )
    if lock_free:
        return "hogwild"
    owner = asynchrony.implied_strategy(config) or local_methods.implied_strategy(config)
    if owner is not None:
        return owner
    return "auto" if config.sync_shares == "equal" else "sync"


def _of_owners(config: TrainConfig) -> list[tuple[str, str]]:
    """Options of another strategy, optimizer or schedule than the run has."""
    pairs = []
    for kind, owners_of in OWNERS.items():
        choice = getattr(config, kind)
        if kind == "optimizer" and choice == "auto":  # that of a run, which is not open yet
            continue
        for name in of_others(kind, choice):
            if not is_set(config, name) or (name == "sync_shares" and config.async_after > 0):
                continue
            owners = owners_of[name]
            kinds = kind if len(owners) == 1 else {"strategy": "strategies"}.get(kind, f"{kind}s")
            pairs.append((name, f"is for {kinds} {', '.join(owners)}, not {choice}; leave it out"))
    return pairs


def _of_prediction(config: TrainConfig) -> list[tuple[str, str]]:
    """What reads ahead of the parameters need."""
    if config.predict in ("auto", "none"):
        return []
    pairs = []
    if config.read == "live" and config.strategy == "hogwild":
        pairs.append(("read", "live reads have no snapshot to predict from; add predict=none"))
    if config.predict == "own" and config.strategy == "round_robin":
        problem = "own, but in round_robin gradients are taken at none or last"
        pairs.append(("predict", f"{problem}; set one of them"))
    if config.predict == "last" and config.strategy == "serial":
        problem = "last is for workers that add their own steps, not for serial"
        pairs.append(("predict", f"{problem}; leave it out"))
    looks_ahead = config.predict == "last" and config.strategy in ("hogwild", "round_robin")
    if looks_ahead and config.optimizer != "auto" and not config.shares_moments:
        problem = "last looks ahead by steps that all workers' moments make"
        pairs.append(("predict", f"{problem}; add moments=shared"))
    return pairs


def _of_optimizer(config: TrainConfig) -> list[tuple[str, str]]:
    """What optimizers other than adamw cannot do, and what muon cannot combine."""
    pairs = []
    if config.moments == "shared" and config.optimizer not in ("auto", "adamw", "muon"):
        problem = f"{config.optimizer} has none that workers could share; leave it out"
        pairs.append(("moments", problem))
    if config.projection_rank is not None and config.optimizer == "apollo-mini":
        problem = "apollo-mini has rank 1; leave it out, or take optimizer=apollo"
        pairs.append(("projection_rank", problem))
    narrow = config.orthogonalization_dtype == "bfloat16"
    if config.optimizer == "muon" and config.orthogonalization == "ns5" and narrow:
        problem = "is bfloat16, whose rounding the five steps of ns5 enlarge too far"
        pairs.append(("orthogonalization_dtype", f"{problem}; leave it out, or take polar3"))
    return pairs


def _of_sparse(config: TrainConfig) -> list[tuple[str, str]]:
    """What does not go together with the options of group sparse."""
    pairs = []
    try:
        sparsified = Selection.parse(config.sparsify) is not None
    except ValueError as error:
        return [("sparsify", str(error))]
    lock_free = config.strategy in ("serial", "hogwild") and config.async_after == 0
    if sparsified and not lock_free:
        problem = "is for workers that write their own steps; set strategy=hogwild"
        pairs.append(("sparsify", f"{problem}, without async_after"))
    if sparsified and config.gpu_write != "cpu":
        problem = f"single elements are added by the CPU, and gpu_write is {config.gpu_write}"
        pairs.append(("sparsify", f"{problem}; set gpu_write=cpu"))
    if sparsified and config.moments == "shared":
        problem = "shared moments would still be written whole at every step"
        pairs.append(("sparsify", f"{problem}; set moments=private"))
    if not sparsified and not config.error_feedback:
        problem = "without sparsify every step is written whole, and nothing is left to drop"
        pairs.append(("error_feedback", f"{problem}; leave it out, or add sparsify=topk:0.01"))
    if config.blocks == "disjoint" and (config.strategy != "hogwild" or config.async_after > 0):
        problem = "disjoint is for workers that write side by side; set strategy=hogwild"
        pairs.append(("blocks", f"{problem}, without async_after"))
    if config.blocks == "disjoint" and config.moments == "shared":
        problem = "the moments of disjoint blocks go from worker to worker with the block"
        pairs.append(("moments", f"{problem}; leave it out"))
    return pairs


def _of_determinism(config: TrainConfig) -> list[tuple[str, str]]:
    """What runs that are recorded, or that repeat by themselves, cannot have."""
    name, pairs = "determinism", []
    if config.determinism == "rounds":
        if config.sync_shares != "equal":
            problem = "rounds, but shares by speed follow from times that are measured"
            pairs.append((name, f"{problem}; leave sync_shares out"))
        if config.backup_workers:
            problem = "rounds, but timing decides whose gradients backup workers throw away"
            pairs.append((name, f"{problem}; leave backup_workers out"))
        if config.time is not None or config.follow is not None:
            problem = "rounds, but a run that time or arriving text ends never ends the same again"
            pairs.append((name, f"{problem}; give --steps or --tokens, and neither of them"))
        elif not config.has_budget and config.resume is None:
            pairs.append((name, "rounds needs a budget in steps or tokens; add --steps"))
        for option in ("patience", "stop_at_loss"):
            if getattr(config, option) is not None:
                problem = f"rounds, but {option} ends a run at a moment that no two runs share"
                pairs.append((name, f"{problem}; leave {option} out"))
    if config.determinism not in ("record", "replay"):
        return pairs
    for wrong, problem in (
        (config.strategy != "hogwild", f"strategy is {config.strategy}; leave it out, or take "
         "determinism=rounds, which needs no record"),
        (config.async_after > 0, "async_after begins in rounds; leave it out"),
        (config.blocks != "all", "blocks=disjoint has no record; leave it out"),
        (config.read == "live", "live reads see single elements change, which no record tells; "
         "set read=snapshot"),
        (config.write not in ("auto", "lossless"), f"write is {config.write}: without stripe "
         "locks no record tells who wrote an element first; set write=lossless"),
        (config.gpu_write != "cpu", f"gpu_write is {config.gpu_write}; set gpu_write=cpu"),
        (config.sparsify != "none", "a sparsified step reads parameters without a lock; leave "
         "sparsify out"),
        (config.delay_compensation != "none", "delay compensation reads parameters without a "
         "lock; leave delay_compensation out"),
        (config.delay_feedback, "the correction of a late step has no record; leave delay_feedback "
         "out"),
        (config.follow is not None, "text that arrives is no part of a record; leave follow out"),
        (config.resume is not None, "a record begins with its run; add --determinism none to go "
         "on without one, and the record stays what it is"),
    ):  # fmt: skip
        if wrong:
            pairs.append((name, f"{config.determinism}, but {problem}"))
    return pairs


def _of_strategy(config: TrainConfig) -> list[tuple[str, str]]:
    """What strategies other than hogwild cannot do."""
    pairs = []
    if config.strategy in ("round_robin", *LOCAL_STRATEGIES):
        if config.read == "live":
            problem = f"live, but {config.strategy} computes with copies; leave read out"
            pairs.append(("read", problem))
        if config.write == "racy" and config.strategy != "diloco":
            alone = f"racy, but in {config.strategy} no other process writes beside a worker"
            pairs.append(("write", f"{alone}; leave it out"))
    return pairs
