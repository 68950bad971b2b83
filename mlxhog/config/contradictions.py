"""Options of a training run that contradict each other, each with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxhog.config import assignments, asynchrony, fine_tuning, local_methods, slowdowns
from mlxhog.config.local_methods import LOCAL_STRATEGIES
from mlxhog.config.selection import Selection

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig

FALLING_SCHEDULES = ("backoff", "inverse")
"""Step sizes that fall by the number of updates, and not by the share of the budget."""


def found(config: TrainConfig) -> list[tuple[str, str]]:
    """Pairs (option, what it contradicts and the way out), of a configuration of legal values."""
    found = _of_prediction(config)
    if config.async_after > 0 and config.strategy != "hogwild":
        found.append(
            ("async_after", f"is for strategy hogwild, not {config.strategy}; leave it out")
        )
    try:
        slowdowns.parse(config.slow)
    except ValueError as error:
        found.append(("slow", str(error)))
    try:
        assignments.parse(config.set)
    except ValueError as error:
        found.append(("set", str(error)))
    found += _of_strategy(config)
    found += asynchrony.contradictions(config) + local_methods.contradictions(config)
    lock_free = config.strategy in ("serial", "hogwild") and config.async_after == 0
    if config.follow is not None and not (lock_free and config.blocks == "all"):
        problem = "is for lock-free workers, which take any batch; set strategy=hogwild"
        found.append(("follow", f"{problem}, without async_after and blocks=disjoint"))
    if config.backoff_epochs is not None and config.schedule not in FALLING_SCHEDULES:
        problem = f"is for schedules backoff and inverse, not {config.schedule}; leave it out"
        found.append(("backoff_epochs", problem))
    if config.gpu_write.startswith("metal") and config.write not in ("auto", "cas"):
        problem = (
            f"is {config.write}, but beside gpu_write={config.gpu_write} every CPU writer has to "
            "use cas; set write=auto, or gpu_write=cpu"
        )
        found.append(("write", problem))
    if not config.live_every.on and config.live != "off":
        found.append(("live_every", "off, so readers would get no copy; set live=off as well"))
    found += fine_tuning.contradictions(config)
    return found + _of_optimizer(config) + _of_sparse(config) + _of_determinism(config)


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


def _of_prediction(config: TrainConfig) -> list[tuple[str, str]]:
    """What reads ahead of the parameters need."""
    if config.predict in ("auto", "none"):
        return []
    found = []
    if config.read == "live" and config.strategy == "hogwild":
        found.append(("read", "live reads have no snapshot to predict from; add predict=none"))
    if config.predict == "last" and config.strategy not in ("hogwild", "round_robin"):
        problem = f"last is for workers that add their own steps, not for {config.strategy}"
        found.append(("predict", f"{problem}; leave it out"))
    elif config.predict == "last" and not config.shares_moments:
        problem = "last looks ahead by steps that all workers' moments make"
        found.append(("predict", f"{problem}; add moments=shared"))
    return found


def _of_optimizer(config: TrainConfig) -> list[tuple[str, str]]:
    """What optimizers other than adamw cannot do, and what muon cannot combine."""
    found = []
    if config.moments == "shared" and config.optimizer not in ("auto", "adamw", "muon"):
        problem = f"{config.optimizer} has none that workers could share; leave it out"
        found.append(("moments", problem))
    if config.beta2_half_life is not None and config.optimizer in ("sgd", "momentum"):
        found.append(("beta2_half_life", f"{config.optimizer} has no beta2; leave it out"))
    if config.projection_rank is not None and config.optimizer == "apollo-mini":
        problem = "apollo-mini has rank 1; leave it out, or take optimizer=apollo"
        found.append(("projection_rank", problem))
    if config.lr_workers in ("sqrt", "linear") and not config.adds_steps_apart:
        problem = f"{config.lr_workers}, but in {config.strategy} no two workers add steps of"
        found.append(("lr_workers", f"{problem} their own; leave it out"))
    narrow = config.orthogonalization_dtype == "bfloat16"
    if config.optimizer == "muon" and config.orthogonalization == "ns5" and narrow:
        problem = "is bfloat16, whose rounding the five steps of ns5 enlarge too far"
        found.append(("orthogonalization_dtype", f"{problem}; leave it out, or take polar3"))
    return found


def _of_sparse(config: TrainConfig) -> list[tuple[str, str]]:
    """What does not go together with the options of group sparse."""
    found = []
    try:
        sparsified = Selection.parse(config.sparsify) is not None
    except ValueError as error:
        return [("sparsify", str(error))]
    lock_free = config.strategy in ("serial", "hogwild") and config.async_after == 0
    if sparsified and not lock_free:
        problem = "is for workers that write their own steps; set strategy=hogwild"
        found.append(("sparsify", f"{problem}, without async_after"))
    if sparsified and config.gpu_write != "cpu":
        problem = f"single elements are added by the CPU, and gpu_write is {config.gpu_write}"
        found.append(("sparsify", f"{problem}; set gpu_write=cpu"))
    if sparsified and config.moments == "shared":
        problem = "shared moments would still be written whole at every step"
        found.append(("sparsify", f"{problem}; set moments=private"))
    if not sparsified and not config.error_feedback:
        problem = "without sparsify every step is written whole, and nothing is left to drop"
        found.append(("error_feedback", f"{problem}; leave it out, or add sparsify=topk:0.01"))
    if config.blocks == "disjoint" and (config.strategy != "hogwild" or config.async_after > 0):
        problem = "disjoint is for workers that write side by side; set strategy=hogwild"
        found.append(("blocks", f"{problem}, without async_after"))
    if config.blocks == "disjoint" and config.moments == "shared":
        problem = "the moments of disjoint blocks go from worker to worker with the block"
        found.append(("moments", f"{problem}; leave it out"))
    return found


def _of_determinism(config: TrainConfig) -> list[tuple[str, str]]:
    """What runs that are recorded, or that repeat by themselves, cannot have."""
    name, found = "determinism", []
    if config.determinism == "rounds":
        if config.sync_shares != "equal":
            problem = "rounds, but shares by speed follow from times that are measured"
            found.append((name, f"{problem}; leave sync_shares out"))
        if config.backup_workers:
            problem = "rounds, but timing decides whose gradients backup workers throw away"
            found.append((name, f"{problem}; leave backup_workers out"))
        if config.time is not None or config.follow is not None:
            problem = "rounds, but a run that time or arriving text ends never ends the same again"
            found.append((name, f"{problem}; give --steps or --tokens, and neither of them"))
        elif not config.has_budget and config.resume is None:
            found.append((name, "rounds needs a budget in steps or tokens; add --steps"))
        for option in ("patience", "stop_at_loss"):
            if getattr(config, option) is not None:
                problem = f"rounds, but {option} ends a run at a moment that no two runs share"
                found.append((name, f"{problem}; leave {option} out"))
    if config.determinism not in ("record", "replay"):
        return found
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
            found.append((name, f"{config.determinism}, but {problem}"))
    return found


def _of_strategy(config: TrainConfig) -> list[tuple[str, str]]:
    """What strategies other than hogwild cannot do."""
    found = []
    synchronous = config.strategy == "sync" or config.async_after > 0
    if config.sync_shares != "equal" and not synchronous:
        found.append(("sync_shares", f"is for strategy sync, not {config.strategy}; leave it out"))
    if config.strategy in ("round_robin", *LOCAL_STRATEGIES):
        if config.read == "live":
            problem = f"live, but {config.strategy} computes with copies; leave read out"
            found.append(("read", problem))
        if config.write == "racy" and config.strategy != "diloco":
            problem = f"racy, but in {config.strategy} nobody writes beside a worker; leave it out"
            found.append(("write", problem))
    return found
