"""Measure a model's conflicts and staleness, apply the theorems, advise."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace

import numpy as np

from mlxhog import optim
from mlxhog.arena.child import Child
from mlxhog.checkpoint import checkpoint
from mlxhog.config.config import TrainConfig
from mlxhog.config.contradictions import choosing
from mlxhog.config.fine_tuning import WITHOUT_ENDS
from mlxhog.config.optimizers import SGD
from mlxhog.config.strategies import Hogwild, Serial
from mlxhog.config.strategy import sparsify
from mlxhog.data.batches import Batches
from mlxhog.errors import ConfigError, DataError, WorkerFailed, did_you_mean
from mlxhog.files.quantities import Interval
from mlxhog.machine import machine
from mlxhog.machine.workers import BACKENDS, WorkerSpec, backend_here, resolve_workers
from mlxhog.models import families, ngrams
from mlxhog.report.metrics import Progress
from mlxhog.report.views import Tell, TellStep
from mlxhog.theory.analysis import PROBE_S, AnalyzeConfig, conflicts, sampling
from mlxhog.theory.analysis.advice import Evidence, advise
from mlxhog.theory.analysis.conditions import Constants, Lag, conditions, facts
from mlxhog.theory.analysis.conflicts import call_child, measure, most_samples
from mlxhog.theory.analysis.report import Analysis
from mlxhog.theory.analysis.sampling import Subject, Ticket, blocks_of
from mlxhog.theory.analysis.staleness import (
    LAGS,
    ObservedStaleness,
    StaleGradient,
    compare_stale_gradients,
    mean_of,
    of_run,
    summaries,
)
from mlxhog.theory.analysis.tables import MOST_BATCHES, count_tables
from mlxhog.theory.analysis.target import Target
from mlxhog.training import trainer
from mlxhog.training.plan import Plan, make_plan

# -- a short lock-free run -------------------------------------------------------------------------


def probe_run(
    config: TrainConfig,
    *,
    workers: str,
    seconds: float,
    tell: Tell,
) -> ObservedStaleness:
    """Train for a few seconds without locks in a temporary folder, and return the staleness.

    Args:
        config: the settings; the run adds plainly (`write: racy`) and evaluates nothing.
        workers: mix of the run.
        seconds: of training.
        tell: called with the progress.

    Raises:
        MlxhogError: as `mlxhog.training.trainer.train`.
        WorkerFailed: no step was finished in that time.
    """
    never = Interval()
    with tempfile.TemporaryDirectory(prefix="mlxhog-analyze-") as folder:
        settings = replace(
            config,
            **choosing(TrainConfig, eval_every="off"),
            strategy=_lock_free(config),
            workers=workers,
            read="snapshot",
            max_workers=None if config.max_workers is None else max(2, config.max_workers),
            write="racy",
            gpu_write="cpu",
            steps=None,
            tokens=None,
            time=seconds,
            **WITHOUT_ENDS,
            sample_every=never,
            save_every=never,
            out=folder,
            name="probe",
            resume=None,
        )

        def show(progress: Progress) -> None:
            tell(f"{progress.step} steps")

        result = trainer.train(settings, observer=show)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if not result.staleness:
        raise WorkerFailed(
            f"the probe run finished no step within {seconds:g} s of training; give it longer, as "
            "in --seconds 30, or none with --seconds 0"
        )
    return ObservedStaleness(
        source="probe",
        workers=len(result.workers),
        write="racy",
        steps=result.steps,
        mean=mean_of(result.staleness),
        largest=max(result.staleness),
        histogram=result.staleness,
        lost_update_rate=result.lost_update_rate,
        tokens_per_s=result.tokens_per_s,
        by_worker=summaries(
            {(worker.slot, worker.backend): worker.staleness for worker in result.workers}
        ),
    )


# -- the analysis ----------------------------------------------------------------------------------

CURVED, ROUNDS = 2, 8  # batches for the curvature, and gradients of each
WATCHED = 4  # batches whose gradients are taken again after others' updates
REMEMBERED = 20  # batches in a trained model's optimizer state: 1 / (1 - beta2) of AdamW


def analyze(target: Target, options: AnalyzeConfig, tell: TellStep) -> Analysis:
    """Measure, apply the theorems, and advise.

    Args:
        target: the model, its training and its parameters.
        options: amounts of measurement.
        tell: called with (part, step) before each step.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input, before any run starts.
        EnvironmentLacks: a backend or memory is missing.
        Diverged: a gradient is not finite.
        WorkerFailed: gradients could not be computed, or the short run took no step.
    """
    began = time.monotonic()
    plan = plan_of(target, options)
    write, notes = plan.writers.write, [*plan.data.notes, *_sparse_notes(target.config)]
    recorded = None if target.run is None else of_run(target.run, write)
    target = replace(target, config=_settled(target, plan))
    subject = subject_of(target, plan, parts=options.parts)
    limit = most_samples(subject)
    samples = min(options.samples, limit)
    if samples < options.samples:
        notes.append(f"{samples} samples instead of {options.samples}: bitmaps of more do not fit")
    batches = subject.batches()
    if batches.example().frozen:
        notes.append(
            "gradients stop at the start of a completion, as in training; --context trained lets "
            "them flow through the prompts"
        )
    if batches.n_tickets < 2:
        raise DataError(
            f"{target.config.data} is one batch of {subject.batch_size} x {subject.seq_len} "
            "tokens, and conflict takes two; use more text, or a smaller --batch-size or --seq-len"
        )
    observed = _observe(target, plan, options, recorded, tell)
    with Child() as child:
        tell("gradients", f"starting {subject.backend}")
        drawn = tickets(batches.n_tickets, samples, target.config.seed)
        measured = measure(child, subject, drawn, lambda step: tell("gradients", step))
        smoothness, stale_gradients = _measure_dynamics(child, subject, target, drawn, tell)
    rows = conflicts.count_rows(
        batches,
        _counted_batches(batches, options.batches, target.config.seed),
        rows=plan.model.vocab_size,
        tokenizer=plan.data.tokenizer,
        tell=lambda step: tell("rows of the embedding", step),
    )
    tables = count_tables(
        batches,
        _counted_batches(batches, min(options.batches, MOST_BATCHES), target.config.seed),
        ngrams.of(plan.model),
        tell=lambda step: tell("rows of tables", step),
    )
    lag = _lag(observed, target)
    constants = Constants(largest_gradient=float(measured.norms.max()), smoothness=smoothness)
    rules = tuple(
        conditions(
            measured.blocks,
            updates_per_epoch=batches.n_tickets,
            lag=lag,
            constants=constants,
            known=facts(target.config, write),
        )
    )
    evidence = Evidence(
        config=target.config,
        write=write,
        cores=machine.here().cores,
        trained=target.checkpoint is not None,
        blocks=measured.blocks,
        embedding=rows,
        tables=tables,
        lag=lag,
        observed=observed,
        stale_gradients=stale_gradients,
        conditions=rules,
    )
    return Analysis(
        title=target.title,
        parameters=plan.parameters,
        backend=subject.backend,
        at="initial values" if target.checkpoint is None else str(target.checkpoint),
        updates_per_epoch=batches.n_tickets,
        sequences=subject.batch_size,
        seq_len=subject.seq_len,
        measured=measured,
        constants=constants,
        evidence=evidence,
        advice=tuple(advise(evidence)),
        notes=tuple(notes),
        seconds=time.monotonic() - began,
    )


def tickets(per_epoch: int, count: int, seed: int) -> list[Ticket]:
    """Draw `count` different batches at random, from the fewest epochs that have them.

    Args:
        per_epoch: batches of an epoch.
        count: of the batches.
        seed: of the draw.
    """
    epochs = -(-count // per_epoch)
    drawn = np.random.default_rng([seed, 1]).choice(per_epoch * epochs, count, replace=False)
    return [(int(one) // per_epoch, int(one) % per_epoch) for one in np.sort(drawn)]


def _counted_batches(batches: Batches, most: int, seed: int) -> list[Ticket]:
    """Return all batches of an epoch, or `most` of them."""
    return tickets(batches.n_tickets, min(most, batches.n_tickets), seed)


def _lock_free(config: TrainConfig) -> Hogwild:
    """Return a strategy that is lock-free from the first step on, with the settings' numbers."""
    if isinstance(config.strategy, Hogwild):
        return replace(config.strategy, async_after=0.0, shares="equal")
    return Hogwild()


def plan_of(target: Target, options: AnalyzeConfig) -> Plan:
    """Check everything as a run of one worker would.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input.
        EnvironmentLacks: a backend or memory is missing.
    """
    backend = backend_here(options.backend, machine.here())
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(
            f"--backend is {backend!r}; wanted auto or one of {', '.join(BACKENDS)}"
            + did_you_mean(backend, BACKENDS)
        )
    config = replace(
        target.config,
        optimizer=SGD(),  # gradients alone are computed: no memory for moments
        strategy=Serial(predict="none"),
        workers=backend,
        read="snapshot",
        gpu_write="cpu",
    )
    plan = make_plan(config)
    if target.saved is not None:
        checkpoint.check_tokenizer(target.saved, plan.data.tokenizer)
    return plan


def _settled(target: Target, plan: Plan) -> TrainConfig:
    """Return the training settings with the model's own defaults; lock-free if that is open."""
    config = target.config
    if config.strategy is None:
        config = replace(config, strategy=Hogwild())
    hidden = families.hidden_matrices(plan.model)
    return optim.for_model(
        config,
        plan.model.hidden_size,
        hidden,
        len(workers_of(target)),
        vocabulary=plan.model.vocab_size,
        groups=families.rate_groups(plan.model),
    )


def subject_of(target: Target, plan: Plan, *, parts: bool = False) -> Subject:
    """Return the gradients to sample; with `parts`, parts of a layer are blocks of their own."""
    (worker,), config = plan.workers, plan.config
    return Subject(
        backend=worker.backend,
        threads=worker.threads,
        kernels=plan.kernels[0],
        cpu_blas=config.cpu_blas,
        compute_dtype=config.compute_dtype,
        model=plan.model,
        layout=plan.layout,
        blocks=blocks_of(plan.model, plan.layout.slots, parts=parts),
        checkpoint=target.checkpoint,
        tokens=plan.data.train,
        seq_len=config.seq_len,
        micro_batch=config.micro_batch,
        batch_size=config.sequences_per_ticket,
        seed=config.seed,
        frozen=config.context == "frozen",
        sampled=plan.sampled,
        sparsified=None if sparsify(target.config) == "none" else _settled(target, plan),
    )


def _sparse_notes(config: TrainConfig) -> list[str]:
    """Return notes on options that change the gradients' supports."""
    notes = []
    if (part := sparsify(config)) != "none":
        notes.append(
            f"supports are those of the steps that sparsify={part} writes, not of gradients; "
            "residuals of error feedback begin at zero"
        )
    if config.sampled_head is not None:
        notes.append(
            f"gradients are those of a loss over each batch's own words and {config.sampled_head} "
            "drawn ones"
        )
    if isinstance(config.strategy, Hogwild) and config.strategy.blocks == "disjoint":
        notes.append(
            "with blocks=disjoint no two workers hold the same block: simultaneous updates never "
            "meet, even if these batches do"
        )
    return notes


def _observe(
    target: Target,
    plan: Plan,
    options: AnalyzeConfig,
    recorded: ObservedStaleness | None,
    tell: TellStep,
) -> ObservedStaleness | None:
    """Return the staleness that a run recorded, or that of a short run."""
    seconds = options.seconds
    if seconds is None:
        seconds = PROBE_S if recorded is None or recorded.workers < 2 else 0.0
    if seconds == 0:
        return recorded
    (worker,) = plan.workers
    workers = target.config.workers
    if workers == "auto" or len(workers_of(target)) < 2:
        workers = f"{worker.backend}*2"
    tell("a short lock-free run", workers)
    return probe_run(
        target.config,
        workers=workers,
        seconds=seconds,
        tell=lambda step: tell("a short lock-free run", step),
    )


def workers_of(target: Target) -> tuple[WorkerSpec, ...]:
    """Return the workers of a run with these settings."""
    config = target.config
    return resolve_workers(
        config.workers,
        config.threads,
        machine=machine.here(),
        max_workers=config.max_workers,
        serial=config.strategy is not None and config.strategy.one_process,
    ).workers


def _lag(observed: ObservedStaleness | None, target: Target) -> Lag:
    if observed is not None and observed.workers > 1:
        return Lag(mean=observed.mean, largest=float(observed.largest), seen=True)
    others = max(1.0, len(workers_of(target)) - 1.0)
    return Lag(mean=others, largest=others, seen=False)


def _measure_dynamics(
    child: Child, subject: Subject, target: Target, drawn: list[Ticket], tell: TellStep
) -> tuple[float, tuple[StaleGradient, ...]]:
    """Return how fast gradients change with the parameters, and the worth of late ones."""
    config = target.config
    tell("gradients", "how fast they change")
    smoothness = float(call_child(child, sampling.curvature, subject, drawn[:CURVED], ROUNDS))
    tell("gradients", "how they age")
    order = np.random.default_rng([config.seed, 2]).permutation(len(drawn))
    shuffled, lags = [drawn[k] for k in order], LAGS[-1]
    before = shuffled[-REMEMBERED:] if target.checkpoint is not None else []
    watched, others = shuffled[lags:][:WATCHED], shuffled[:lags]
    stale_gradients = call_child(
        child, compare_stale_gradients, subject, watched, others, before, config
    )
    return smoothness, stale_gradients
