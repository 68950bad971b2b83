"""`analyze`: measure a model's conflicts and staleness, apply the theorems, advise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mlxhog import checkpoint, machine, mix
from mlxhog.config import TrainConfig
from mlxhog.data.batches import Batches
from mlxhog.doctor.child import Child
from mlxhog.errors import ConfigError, DataError
from mlxhog.models import families
from mlxhog.options import did_you_mean
from mlxhog.plan import Plan, make_plan
from mlxhog.theory import ageing, embedding_rows, observed, sampling
from mlxhog.theory.advice import Advice, Evidence, advise
from mlxhog.theory.ageing import Age
from mlxhog.theory.analyze_config import PROBE_S, AnalyzeConfig
from mlxhog.theory.blocks import GRAINS, blocks_of
from mlxhog.theory.conditions import Condition, Constants, Lag, conditions, facts
from mlxhog.theory.conflicts import BlockConflicts, Measured, asked, measure, most_samples
from mlxhog.theory.embedding_rows import RowStatistics
from mlxhog.theory.named import Named
from mlxhog.theory.observed import Observed
from mlxhog.theory.sampling import Subject, Ticket

Tell = Callable[[str, str], None]

CURVED, ROUNDS = 2, 8  # batches, and gradients for each, that curvature is measured with
WATCHED = 4  # batches whose gradients are looked at again after others' updates
REMEMBERED = 20  # batches that a trained model's optimizer remembers: 1 / (1 - beta2) of AdamW


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that was found.

    Attributes:
        title: what was analyzed.
        parameters: of the model.
        backend: what computed the gradients.
        at: where the parameters came from.
        updates_per_epoch: |E|.
        sequences: in one update.
        seq_len: tokens of each.
        measured: conflicts of the blocks, losses and norms.
        embedding: rows of the embedding, counted.
        ages: what late gradients are worth.
        constants: M and L.
        lag: the staleness that rules were taken at.
        seen: the run it comes from.
        conditions: the theorems' rules.
        advice: what to do.
        notes: what the user should know about all this.
        seconds: that the analysis took.
    """

    title: str
    parameters: int
    backend: str
    at: str
    updates_per_epoch: int
    sequences: int
    seq_len: int
    measured: Measured
    embedding: RowStatistics
    ages: tuple[Age, ...]
    constants: Constants
    lag: Lag
    seen: Observed | None
    conditions: tuple[Condition, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return what `analyze --json` prints."""
        return {
            "subject": self.title,
            "parameters": self.parameters,
            "backend": self.backend,
            "at": self.at,
            "samples": self.measured.samples,
            "updates_per_epoch": self.updates_per_epoch,
            "sequences_per_update": self.sequences,
            "seq_len": self.seq_len,
            "blocks": [_block(one, self.updates_per_epoch) for one in self.measured.blocks],
            "embedding": self.embedding.to_json(),
            "gradients": {
                "mean_loss": float(self.measured.losses.mean()),
                "mean_norm": float(self.measured.norms.mean()),
                **asdict(self.constants),
                "ageing": [age.to_json() for age in self.ages],
            },
            "staleness": None if self.seen is None else self.seen.to_json(),
            "lag": asdict(self.lag),
            "bounds": [one.to_json() for one in self.conditions],
            "advice": [one.to_json() for one in self.advice],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def _block(one: BlockConflicts, updates: int) -> dict[str, Any]:
    """One block: the paper's numbers first, those of coarser grains below `grains`."""
    elements = one.elements.to_json()
    kinds: dict[str, Mapping[str, Any]] = {
        kind: {grain: one.by[kind, grain].to_json() for grain in GRAINS}
        for kind in dict.fromkeys(kind for kind, _ in one.by)
    }
    return {
        "name": one.block.name,
        "parameters": one.block.parameters,
        **{name: elements[name] for name in ("omega", "rho", "delta", "p_conf")},
        "mean_conflict_degree": elements["p_conf"] * (updates - 1),
        "updates_per_epoch": updates,
        "untouched": elements["untouched"],
        "row_sparse": one.block.row_sparse,
        "cell": one.block.cell,
        "counted": one.counted,
        "intervals": elements["intervals"],
        "grains": kinds,
    }


def analyze(named: Named, options: AnalyzeConfig, tell: Tell) -> Analysis:
    """Measure and judge.

    Args:
        named: the model, its training and its parameters.
        options: how much to look at.
        tell: told (part, step) before each step.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input, before anything is started.
        EnvironmentLacks: a backend or memory is missing.
        Diverged: a gradient is not finite.
        WorkerFailed: gradients could not be computed, or the short run took no step.
    """
    began = time.monotonic()
    plan = plan_of(named, options)
    write, notes = plan.writers.write, [*plan.data.notes, *_sparse_notes(named.config)]
    seen = None if named.run is None else observed.of_run(named.run, write)
    subject = subject_of(named, plan)
    limit = most_samples(subject)
    samples = min(options.samples, limit)
    if samples < options.samples:
        notes.append(f"{samples} samples instead of {options.samples}: bitmaps of more do not fit")
    batches = subject.batches()
    if batches.n_tickets < 2:
        raise DataError(
            f"{named.config.data} is one batch of {subject.batch_size} x {subject.seq_len} tokens, "
            "and conflict takes two; use more text, or a smaller --batch-size or --seq-len"
        )
    probed = _probed(named, plan, options, seen, tell)
    with Child() as child:
        tell("gradients", f"starting {subject.backend}")
        drawn = tickets(batches.n_tickets, samples, named.config.seed)
        measured = measure(child, subject, drawn, lambda step: tell("gradients", step))
        smoothness, ages = _dynamics(child, subject, named, drawn, tell)
    rows = embedding_rows.count(
        batches,
        _counted(batches, options.batches, named.config.seed),
        rows=named.model.vocab_size,
        tokenizer=plan.data.tokenizer,
        tell=lambda step: tell("rows of the embedding", step),
    )
    lag = _lag(probed, plan)
    constants = Constants(largest_gradient=float(measured.norms.max()), smoothness=smoothness)
    rules = tuple(
        conditions(
            measured.blocks,
            updates_per_epoch=batches.n_tickets,
            lag=lag,
            constants=constants,
            known=facts(named.config, write),
        )
    )
    evidence = Evidence(
        config=named.config,
        write=write,
        cores=machine.here().cores,
        trained=named.checkpoint is not None,
        blocks=measured.blocks,
        embedding=rows,
        lag=lag,
        seen=probed,
        ages=ages,
        conditions=rules,
    )
    return Analysis(
        title=named.title,
        parameters=plan.parameters,
        backend=subject.backend,
        at="initial values" if named.checkpoint is None else str(named.checkpoint),
        updates_per_epoch=batches.n_tickets,
        sequences=subject.batch_size,
        seq_len=subject.seq_len,
        measured=measured,
        embedding=rows,
        ages=ages,
        constants=constants,
        lag=lag,
        seen=probed,
        conditions=rules,
        advice=tuple(advise(evidence)),
        notes=tuple(notes),
        seconds=time.monotonic() - began,
    )


def tickets(per_epoch: int, count: int, seed: int) -> list[Ticket]:
    """Draw `count` different batches at random, from as many epochs as it takes.

    Args:
        per_epoch: batches of an epoch.
        count: how many.
        seed: of the draw.
    """
    epochs = -(-count // per_epoch)
    drawn = np.random.default_rng([seed, 1]).choice(per_epoch * epochs, count, replace=False)
    return [(int(one) // per_epoch, int(one) % per_epoch) for one in np.sort(drawn)]


def _counted(batches: Batches, most: int, seed: int) -> list[Ticket]:
    """All batches of an epoch, or as many as are asked for."""
    return tickets(batches.n_tickets, min(most, batches.n_tickets), seed)


def plan_of(named: Named, options: AnalyzeConfig) -> Plan:
    """Check everything as a run of one worker would.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input.
        EnvironmentLacks: a backend is missing, or memory is.
    """
    backend = mix.backend_here(options.backend, machine.here())
    if backend not in ("auto", *mix.BACKENDS):
        raise ConfigError(
            f"--backend is {backend!r}; wanted auto or one of {', '.join(mix.BACKENDS)}"
            + did_you_mean(backend, mix.BACKENDS)
        )
    config = replace(
        named.config,
        workers=backend,
        strategy="serial",
        predict="none",
        async_after=0.0,
        average_every=None,
        blocks="all",
        optimizer="sgd",  # gradients alone are computed: no memory for moments
        second_moment="private",
        read="snapshot",
        gpu_write="cpu",
    )
    plan = make_plan(config)
    if named.saved is not None:
        checkpoint.check_tokenizer(named.saved, plan.data.tokenizer)
    return plan


def subject_of(named: Named, plan: Plan) -> Subject:
    """Say which gradients are to be sampled."""
    (worker,), config = plan.workers, plan.config
    model = families.with_bos(named.model, plan.data.tokenizer.bos)
    return Subject(
        backend=worker.backend,
        threads=worker.threads,
        kernels=plan.kernels[0],
        cpu_blas=config.cpu_blas,
        compute_dtype=config.compute_dtype,
        model=model,
        layout=plan.layout,
        blocks=blocks_of(model, plan.layout.slots),
        checkpoint=named.checkpoint,
        tokens=plan.data.train,
        seq_len=config.seq_len,
        micro_batch=config.batch_size,
        batch_size=config.batch_size * config.grad_accumulation,
        seed=config.seed,
        sampled=plan.sampled,
        sparsified=None if config.sparsify == "none" else named.config,
    )


def _sparse_notes(config: TrainConfig) -> list[str]:
    """What the options of group sparse make of the numbers."""
    notes = []
    if config.sparsify != "none":
        notes.append(
            f"counted is what a worker would write with sparsify={config.sparsify}, not the "
            "gradient; what it keeps back begins empty"
        )
    if config.sampled_head is not None:
        notes.append(
            f"gradients are those of a loss over each batch's own words and {config.sampled_head} "
            "drawn ones"
        )
    if config.blocks == "disjoint":
        notes.append(
            "with blocks=disjoint no two workers hold the same block: updates at the same time "
            "never meet, whatever two of these batches have in common"
        )
    return notes


def _probed(
    named: Named, plan: Plan, options: AnalyzeConfig, seen: Observed | None, tell: Tell
) -> Observed | None:
    """What a run recorded, or what a short one shows."""
    seconds = options.seconds
    if seconds is None:
        seconds = PROBE_S if seen is None or seen.workers < 2 else 0.0
    if seconds == 0:
        return seen
    (worker,) = plan.workers
    workers = named.config.workers
    if workers == "auto" or len(mix.resolve(workers, machine=machine.here()).workers) < 2:
        workers = f"{worker.backend}*2"
    tell("a short lock-free run", workers)
    return observed.probe(
        named.config,
        workers=workers,
        seconds=seconds,
        tell=lambda step: tell("a short lock-free run", step),
    )


def _lag(seen: Observed | None, plan: Plan) -> Lag:
    if seen is not None and seen.workers > 1:
        return Lag(mean=seen.mean, largest=float(seen.largest), seen=True)
    others = max(1.0, len(plan.workers) - 1.0)
    return Lag(mean=others, largest=others, seen=False)


def _dynamics(
    child: Child, subject: Subject, named: Named, drawn: list[Ticket], tell: Tell
) -> tuple[float, tuple[Age, ...]]:
    """How fast gradients change with the parameters, and what that does to late ones."""
    config = named.config
    tell("gradients", "how fast they change")
    smoothness = float(asked(child, sampling.curvature, subject, drawn[:CURVED], ROUNDS))
    tell("gradients", "how they age")
    order = np.random.default_rng([config.seed, 2]).permutation(len(drawn))
    shuffled, lags = [drawn[k] for k in order], ageing.LAGS[-1]
    before = shuffled[-REMEMBERED:] if named.checkpoint is not None else []
    watched, others = shuffled[lags:][:WATCHED], shuffled[:lags]
    ages = asked(child, ageing.age, subject, watched, others, before, config)
    return smoothness, ages
