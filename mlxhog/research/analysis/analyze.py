"""Measure a model's conflicts and staleness, and apply the theorems."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from mlxhog import optim, strategies
from mlxhog.arena.child import Child
from mlxhog.base import machine
from mlxhog.base.workers import BACKENDS, WorkerSpec, backend_here, resolve_workers
from mlxhog.checkpoint import compatible
from mlxhog.config.config import TrainConfig
from mlxhog.display.views import TellStep
from mlxhog.errors import ConfigError, DataError, did_you_mean
from mlxhog.experiments.short_runs import PLAIN
from mlxhog.experiments.target import AnalysisTarget
from mlxhog.models import families
from mlxhog.optim import SGD, OptimizerComponent
from mlxhog.optim.component import SharedMoments
from mlxhog.research import PROBE_S, AnalyzeConfig, bounds
from mlxhog.research.analysis import conflicts, sampling
from mlxhog.research.analysis.advice import (
    Analysis,
    ObservedStaleness,
    RunStaleness,
    advise,
    of_run,
    probe_run,
)
from mlxhog.research.analysis.conflicts import call_child, max_samples, measure
from mlxhog.research.analysis.sampling import DELAYS, Subject, Ticket, blocks_of
from mlxhog.research.bounds import Bound, Facts
from mlxhog.research.rules import verdict
from mlxhog.strategies import Hogwild, Serial
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.values import TextPlan

WATCHED = 4  # batches whose gradients are taken again after others' updates
REMEMBERED = 20  # batches in a trained model's optimizer state: 1 / (1 - beta2) of AdamW


def analyze(target: AnalysisTarget, options: AnalyzeConfig, tell: TellStep) -> dict[str, Any]:
    """Measure, and apply the theorems; returns what `analyze --json` prints.

    `tell` is called with (part, step) before each step.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input, before any run starts.
        EnvironmentLacks: a backend or memory is missing.
        Diverged: a gradient is not finite.
        WorkerFailed: gradients could not be computed, or the short run took no step.
    """
    began = time.monotonic()
    plan = plan_of(target, options)
    write, trained = plan.writers.write, target.checkpoint is not None
    recorded = None if target.run is None else of_run(target.run, write)
    target = replace(target, config=_settled(target, plan))
    config = target.config
    subject = subject_of(target, plan)
    samples = min(options.samples, max_samples(subject))
    batches, sequences = plan.batches(), config.sequences_per_ticket
    notes = [*plan.data.notes]
    if isinstance(config.strategy, Hogwild) and config.strategy.blocks == "disjoint":
        notes.append(
            "with blocks=disjoint no two workers hold the same block: simultaneous updates "
            "never overlap, even if these batches do"
        )
    if samples < options.samples:
        notes.append(f"{samples} samples instead of {options.samples}: bitmaps of more do not fit")
    if batches.n_tickets < 2:
        raise DataError(
            f"{config.data} is one batch of {sequences} x {config.seq_len} "
            "tokens, and conflict takes two; use more text, or a smaller --batch-size or --seq-len"
        )
    observed = _observe(target, plan, options, recorded, tell)
    with Child() as child:
        tell("gradients", f"starting {plan.workers[0].backend}")
        drawn = tickets(batches.n_tickets, samples, config.seed)
        measured = measure(child, subject, drawn, tell)
        tell("gradients", "stale against fresh")
        order = np.random.default_rng([config.seed, 2]).permutation(len(drawn))
        shuffled, longest = [drawn[k] for k in order], DELAYS[-1]
        stale_gradients = call_child(
            child,
            sampling.compare_stale_gradients,
            subject,
            shuffled[longest:][:WATCHED],
            shuffled[:longest],
            shuffled[-REMEMBERED:] if trained else [],
        )
    counted = tickets(batches.n_tickets, min(options.batches, batches.n_tickets), config.seed)
    embedding = conflicts.count_rows(
        batches,
        counted,
        plan.model.vocab_size,
        plan.data.tokenizer,
        lambda step: tell("rows of the embedding", step),
    )
    others = max(1.0, len(workers_of(target)) - 1.0)
    staleness = RunStaleness(others, others, measured=False)
    if observed is not None and observed["workers"] > 1:
        seen = observed["all"]
        staleness = RunStaleness(seen["mean"], float(seen["max"]), measured=True)
    theorems = bounds_of(
        measured.blocks, updates=batches.n_tickets, staleness=staleness, facts=facts(config, write)
    )
    analysis = Analysis(
        config=config,
        write=write,
        cores=machine.here().cores,
        trained=trained,
        blocks=measured.blocks,
        staleness=staleness,
        observed=observed,
        stale_gradients=stale_gradients,
        bounds=tuple(theorems),
    )
    return {
        "answer": verdict(analysis),
        "subject": target.title,
        "parameters": plan.parameters,
        "backend": plan.workers[0].backend,
        "at": str(target.checkpoint) if trained else "initial values",
        "samples": samples,
        "updates_per_epoch": batches.n_tickets,
        "sequences_per_update": sequences,
        "seq_len": plan.config.seq_len,
        "blocks": [asdict(one) for one in measured.blocks],
        "embedding": embedding,
        "gradients": {
            "mean_loss": float(measured.losses.mean()),
            "mean_norm": float(measured.norms.mean()),
            "largest_gradient": float(measured.norms.max()),
            "stale": [one._asdict() for one in stale_gradients],
        },
        "staleness": observed,
        "assumed_staleness": staleness._asdict(),
        "bounds": [*analysis.bounds],
        "advice": [*advise(analysis)],
        "notes": notes,
        "seconds": time.monotonic() - began,
    }


# -- the theorems, applied -------------------------------------------------------------------------


def facts(config: TrainConfig, write: str) -> Facts:
    """Return the facts on a language model and its training; `write` as the option of that name."""
    strategy, sgd = strategies.strategy_of(config), SGD(weight_decay=0.0)
    return {
        "strongly_convex": False,
        "bounded_gradients": True if config.clip > 0 else None,
        "lossless": write != "racy",
        "sgd": config.optimizer == sgd and (strategy is None or strategy.sparsify == "none"),
    }


def bounds_of(
    blocks: Sequence[conflicts.BlockConflicts],
    *,
    updates: int,
    staleness: RunStaleness,
    facts: Facts,
) -> Iterator[Bound]:
    """Yield the theorems of every block.

    An example of the theory is one update; `updates` are those of an epoch, |E|.
    """
    for one in blocks:
        # Every update touches something, so neither share is 0, even if it is in the sample.
        rho, delta = max(one.rho, 1 / updates), max(one.delta, 1 / updates)
        here, sizes = {**facts, "sparse": one.delta < 1}, {"rho": rho, "delta": delta}
        for name, more in {
            "proposition 4.1": {"omega": one.omega, **sizes},
            "n^(1/4)": {"n": one.parameters, **sizes},
            "perturbed iterate": {
                "n_examples": updates, "mean_degree": one.p_conf * (updates - 1),
            },
        }.items():  # fmt: skip
            yield bounds.apply(name, here, one.name, tau=staleness.largest, **more)


# -- what is measured ------------------------------------------------------------------------------


def tickets(per_epoch: int, count: int, seed: int) -> list[Ticket]:
    """Draw `count` different batches at random, from as few epochs as have them."""
    epochs = -(-count // per_epoch)
    drawn = np.random.default_rng([seed, 1]).choice(per_epoch * epochs, count, replace=False)
    return [(int(one) // per_epoch, int(one) % per_epoch) for one in np.sort(drawn)]


def plan_of(target: AnalysisTarget, options: AnalyzeConfig) -> TextPlan:
    """Check everything as a run of one worker would; raises as `analyze`."""
    backend = backend_here(options.backend, machine.here())
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(
            f"--backend is {backend!r}; wanted auto or one of {', '.join(BACKENDS)}"
            + did_you_mean(backend, BACKENDS)
        )
    # Gradients alone are computed: no memory for moments.
    plan = make_plan(_alone(target.config, backend, SGD()))
    if target.saved is not None:
        compatible.check_tokenizer(target.saved, plan.data.tokenizer)
    return plan


def _alone(config: TrainConfig, backend: str, optimizer: OptimizerComponent) -> TrainConfig:
    return replace(
        config,
        optimizer=optimizer,
        strategy=Serial(predict="none"),
        workers=backend,
        gpu_write="cpu",
        inject_stragglers=None,
        **PLAIN,
    )


def _settled(target: AnalysisTarget, plan: TextPlan) -> TrainConfig:
    """Return the training settings with the model's own defaults; lock-free if that is open."""
    config = target.config
    if config.strategy is None:
        config = replace(config, strategy=Hogwild())
    return strategies.for_model(
        config,
        plan.model.hidden_size,
        families.hidden_matrices(plan.model),
        len(workers_of(target)),
        vocabulary=plan.model.vocab_size,
    )


def subject_of(target: AnalysisTarget, plan: TextPlan) -> Subject:
    """Return the gradients to sample, and the optimizer of one worker with its own moments."""
    steps = _settled(target, plan)
    optimizer = optim.optimizer_of(steps)
    if isinstance(optimizer, SharedMoments):
        optimizer = replace(optimizer, moments="private")
    steps = _alone(steps, plan.workers[0].backend, optimizer)
    return Subject(plan, steps, blocks_of(plan.model, plan.layout.slots), target.checkpoint)


def _observe(
    target: AnalysisTarget,
    plan: TextPlan,
    options: AnalyzeConfig,
    recorded: ObservedStaleness | None,
    tell: TellStep,
) -> ObservedStaleness | None:
    """Return the staleness that a run recorded, or that of a short run."""
    seconds = options.time
    if seconds is None:
        seconds = PROBE_S if recorded is None or recorded["workers"] < 2 else 0.0
    if seconds == 0:
        return recorded
    workers = target.config.workers
    if workers == "auto" or len(workers_of(target)) < 2:
        workers = f"{plan.workers[0].backend}*2"
    part = "a short lock-free run"
    tell(part, workers)
    return probe_run(
        target.config, workers=workers, seconds=seconds, tell=lambda step: tell(part, step)
    )


def workers_of(target: AnalysisTarget) -> tuple[WorkerSpec, ...]:
    """Return the workers of a run with these settings."""
    config, strategy = target.config, strategies.strategy_of(target.config)
    return resolve_workers(
        config.workers,
        config.threads,
        machine=machine.here(),
        max_workers=config.max_workers,
        serial=strategy is not None and strategy.one_process,
    ).workers
