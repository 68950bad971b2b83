"""A run before anything is started: its model, data, workers, arena, and their bytes.

Everything that can be wrong with the input is found here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mlxhog import optim, strategies
from mlxhog.arena import Layout
from mlxhog.backends import kernel_choice
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.backends.kernel_choice import Writers
from mlxhog.checkpoint import run
from mlxhog.config import slowdowns
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.contradictions import FALLING_SCHEDULES
from mlxhog.data import prepare, stream
from mlxhog.data.batches import Batches
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.machine import machine, verdicts
from mlxhog.machine.workers import GPU_BACKENDS, WorkerSpec, resolve_workers
from mlxhog.models import families
from mlxhog.models.families import ModelConfig, param_count, param_spec
from mlxhog.models.registry import load_architecture
from mlxhog.models.sampled_head import SampledHead
from mlxhog.optim import Optimizer, schedules
from mlxhog.report.metrics import is_emulated, kernels_used
from mlxhog.strategies import Strategy
from mlxhog.training import evaluation, evenness
from mlxhog.training.job import Setup, plan_layout
from mlxhog.training.resume import Resumption
from mlxhog.training.side_jobs import Text

WORKER_BASE_BYTES = 400 << 20  # interpreter, framework and its first allocations
FREE_SLOTS = 2  # for workers that join, where --max-workers does not say otherwise
FREE_SLOTS_SHARE = 1 / 16  # of the memory a run may use: what they take at most
LIVE_PART = 0.1  # of a run's memory that copies for readers may take unasked
ACTIVATIONS_PER_TOKEN = 40  # floats per token, block and unit of width that a backward pass keeps


@dataclass(frozen=True, kw_only=True)
class Plan(Setup):
    """A run of a language model that has passed every check.

    Attributes:
        data: prepared token files.
        parameters: numbers in the model.
        arena_bytes: shared memory.
        worker_bytes: estimate of the private memory of one worker.
        private_state: optimizer segments kept per worker slot.
        shared_state: optimizer segments kept once.
        budget: what this call may add.
        resumption: the run that is resumed; None begins a new one.
        auto: whether the strategy is left open for a resume: the workers have not been measured
            yet, or there is only one.
    """

    data: prepare.Prepared
    parameters: int
    arena_bytes: int
    worker_bytes: int
    private_state: tuple[str, ...]
    shared_state: tuple[str, ...]
    budget: Budget
    resumption: Resumption | None
    auto: bool = False

    @property
    def undecided(self) -> bool:
        """Whether the strategy is a guess until the workers have been measured."""
        return self.auto and len(self.workers) > 1

    @property
    def stored(self) -> TrainConfig:
        """The configuration that a run's folder keeps."""
        if not self.auto:
            return self.config
        return replace(self.config, strategy="auto", sync_shares="equal")

    @property
    def config(self) -> TrainConfig:
        """The resolved configuration."""
        return self.strategy.config

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one update."""
        return self.strategy.tokens_per_step

    @property
    def free_slots(self) -> int:
        """Workers that can join it."""
        return self.strategy.slots - self.strategy.workers

    @property
    def emulated(self) -> bool:
        """Whether Metal source runs, or before a resume ran, on the CPU; see `is_emulated`."""
        return is_emulated(self.writers.gpu_write, self.kernels_used) or self.emulated_before

    @property
    def emulated_before(self) -> bool:
        """Whether steps that this run goes on from were emulated."""
        earlier = self.resumption
        return earlier is not None and bool(earlier.checkpoint.state.get("emulated"))

    @property
    def kernels_used(self) -> str:
        """The forms of the model's operations, each once."""
        return kernels_used(self.kernels)

    def open_run(self) -> run.Run:
        """Return the run that is resumed, or a new one in the folder of runs.

        Raises:
            EnvironmentLacks: the folder cannot be written.
        """
        if self.resumption is not None:
            return self.resumption.run
        return run.create(
            Path(self.config.out), self.config.name or run.default_name(self.config.data)
        )


def make_plan(config: TrainConfig) -> Plan:
    """Check a configuration against this machine and its data; starts nothing.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input.
        EnvironmentLacks: a backend is missing, or memory is.
    """
    model = load_architecture(config.model)
    families.check_language_model(model)
    families.check_length(model, config.seq_len)
    here, record = machine.here(), verdicts.load()
    choice = resolve_workers(
        config.workers,
        config.threads,
        machine=here,
        max_workers=config.max_workers,
        serial=config.strategy == "serial",
        tokens_per_s=record.tokens_per_s,
    )
    slowdowns.check_ranks(config.slow, len(choice.workers))
    backends = [worker.backend for worker in choice.workers]
    writers = kernel_choice.choose_writers(config, backends, record)
    kernels = kernel_choice.choose_kernels(config, backends, record)
    _check_parameters(config, model, here.memory_bytes)
    hidden = families.hidden_matrices(model)
    resumption = Resumption.of(config, model.to_dict(), hidden)
    own_budget = None
    if resumption is not None:
        config, own_budget = resumption.config, resumption.own_budget
    workers, auto, named = choice.workers, config.strategy == "auto", config.optimizer
    if auto:
        guess = evenness.guess(workers) if len(workers) > 1 else "serial"
        config = evenness.with_strategy(config, guess)
    config = optim.for_model(config, model.hidden_size, hidden, len(workers))
    data = prepare.prepare(
        config.data, tokenizer=config.tokenizer, text_key=config.text_key, val=config.val
    )
    train, val = data.open(config.seq_len)
    _check_vocabulary(config, model, data)
    config, follow_notes = _following(config)
    model = families.with_bos(model, data.tokenizer.bos)
    if resumption is not None:
        resumption.check_data(data.tokenizer, train.digest)
    spec, sampled = param_spec(model), None
    if config.sampled_head is not None:
        _check_sampled_head(config, model)
        counts = train.frequencies(model.vocab_size)
        sampled = SampledHead.of_counts(config.sampled_head, counts)
        head = families.head(model)
        spec = {**spec, head: replace(spec[head], kind="rows")}  # a step touches few of them
    strategy = strategies.build(config, len(workers))
    strategy.check(model)
    optimizer = optim.build(config, hidden, tokens_per_step=strategy.tokens_per_step)
    apart = len(workers) if config.adds_steps_apart else 1
    factor = schedules.workers_factor(config.lr_workers, config.optimizer, apart)
    n_tickets = math.ceil(train.n_sequences(config.seq_len) / config.sequences_per_ticket)
    if config.follow is not None:
        n_tickets = stream.TICKETS
    tables = {evaluation.SEGMENT: evaluation.segment(val, config, param_count(model))}
    if auto:
        tables |= evenness.segment(len(workers))
    live, live_note = _reads_live(config, model, here.memory_bytes)
    lay_out = partial(
        plan_layout, spec, optimizer=optimizer, n_tickets=n_tickets, tables=tables, live=live
    )
    strategy, layout = _with_free_slots(strategy, lay_out, here.memory_bytes)
    worker_bytes = _worker_bytes(config, model, layout, len(workers))
    plan = Plan(
        strategy=strategy,
        model=model,
        data=data,
        workers=workers,
        writers=writers,
        kernels=kernels.of_workers,
        notes=(
            *choice.notes,
            *writers.notes,
            *kernels.notes,
            *live_note,
            *follow_notes,
            *_optimizer_notes(config, named, model, hidden, factor),
        ),
        layout=layout,
        parameters=param_count(model),
        arena_bytes=layout.occupied_bytes,
        worker_bytes=worker_bytes,
        private_state=tuple(optimizer.state_segments),
        shared_state=tuple(optimizer.shared_segments),
        decay=frozenset(name for name, one in spec.items() if one.decay),
        gpu_share=_gpu_share(config, workers, writers, optimizer, layout),
        batches=partial(
            Batches.open,
            data.train,
            seq_len=config.seq_len,
            batch_size=config.sequences_per_ticket,
            seed=config.seed,
        ),
        schedule=partial(
            schedules.build,
            config,
            lr=config.top_lr * factor,
            per_epoch=max(1, n_tickets // strategy.batches_per_step()),
        ),
        side_jobs=Text(data.val, data.tokenizer).open,
        sampled=sampled,
        budget=own_budget or Budget(steps=config.steps, tokens=config.tokens, seconds=config.time),
        resumption=resumption,
        auto=auto,
    )
    _check_memory(plan, here.memory_bytes)
    return plan


def _with_free_slots(
    strategy: Strategy, lay_out: Callable[[Strategy], Layout], memory_bytes: int
) -> tuple[Strategy, Layout]:
    """Give the arena slots for workers that join: as many as asked for, or what memory allows.

    Args:
        strategy: for the workers that the run begins with.
        lay_out: the arena of a strategy.
        memory_bytes: of this machine.
    """
    config, layout = strategy.config, lay_out(strategy)
    if strategy.fixed:
        return strategy, layout
    if config.max_workers is not None:
        wanted = replace(strategy, max_workers=config.max_workers)
        return wanted, lay_out(wanted)
    most_bytes = layout.occupied_bytes + FREE_SLOTS_SHARE * config.memory_limit * memory_bytes
    for free in range(FREE_SLOTS, 0, -1):
        larger = replace(strategy, max_workers=strategy.workers + free)
        if (its_layout := lay_out(larger)).occupied_bytes <= most_bytes:
            return larger, its_layout
    return strategy, layout


def _optimizer_notes(
    config: TrainConfig, named: str, model: ModelConfig, hidden: frozenset[str], factor: float
) -> tuple[str, ...]:
    """What the user should know of an optimizer's step size, and where it does not fit the model.

    Args:
        config: of the run.
        named: optimizer that was asked for.
        model: its architecture.
        hidden: its hidden matrices.
        factor: of lr.
    """
    notes = []
    if factor != 1.0:
        notes.append(
            f"lr {config.top_lr * factor:.3g}: {factor:.3g} of {config.top_lr:g}, since each "
            "worker adds steps of its own (lr_workers)"
        )
    if named in ("muon", "apollo", "apollo-mini", "soap") and not hidden:
        rule = "adam" if named.startswith("apollo") else "adamw"
        notes.append(
            f"optimizer {named}: this {families.of(model).title} has no hidden matrix "
            f"(both sides at least {model.hidden_size / 2:g}, half its width), so {rule} moves "
            "every parameter"
        )
    return tuple(notes)


def _reads_live(
    config: TrainConfig, model: ModelConfig, memory_bytes: int
) -> tuple[bool, tuple[str, ...]]:
    """Whether to keep copies for readers, and what the user should know of it."""
    n_bytes = 2 * 4 * param_count(model)
    fits = n_bytes <= LIVE_PART * config.memory_limit * memory_bytes
    if config.live != "auto" or fits:
        return config.live != "off", ()
    return False, (
        f"no copies for live readers: the two would take {n_bytes / 2**30:.1f} GiB; --live on "
        "keeps them all the same",
    )


def _following(config: TrainConfig) -> tuple[TrainConfig, tuple[str, ...]]:
    """The configuration, where nothing ends the run with a step size that needs no end; notes.

    Raises:
        ConfigError: there is no such folder.
    """
    if config.follow is None:
        return config, ()
    if not Path(config.follow).expanduser().is_dir():
        raise ConfigError(
            f"follow: there is no folder {config.follow}; make it (mkdir), or name another"
        )
    note = f"follows {config.follow}: new text files there are trained once"
    if config.has_budget or config.schedule in FALLING_SCHEDULES:
        return config, (note,)
    constant = replace(config, schedule="constant", warmup=0.0)
    return constant, (
        f"{note}, at a constant lr of {config.top_lr:g}, until mlxhog stop or Ctrl-C",
    )


def _check_vocabulary(config: TrainConfig, model: ModelConfig, data: prepare.Prepared) -> None:
    if data.tokenizer.n_ids > model.vocab_size:
        raise ConfigError(
            f"model {config.model} has vocab_size {model.vocab_size}, tokenizer {config.tokenizer} "
            f"{data.tokenizer.n_ids} ids, one of which is BOS, the start of a document; set "
            f"vocab_size to at least {data.tokenizer.n_ids}, or choose another model or tokenizer"
        )


def _check_sampled_head(config: TrainConfig, model: ModelConfig) -> None:
    if model.tie_word_embeddings:
        raise ConfigError(
            f"sampled_head needs a head of its own, and model {config.model} has its head tied to "
            "the embedding; untie it in the model (tie_word_embeddings or tie_weights: false), or "
            "leave sampled_head out"
        )
    if config.sampled_head is not None and config.sampled_head >= model.vocab_size:
        raise ConfigError(
            f"sampled_head draws {config.sampled_head} words, and model {config.model} has "
            f"vocab_size {model.vocab_size}; draw fewer, or leave it out for the whole vocabulary"
        )


def _gpu_share(
    config: TrainConfig,
    workers: Sequence[WorkerSpec],
    writers: Writers,
    optimizer: Optimizer,
    layout: Layout,
) -> GPUShare:
    """What each worker on a GPU may take of it."""
    segments = int(config.read == "live")  # by the model, and again by whoever writes
    if writers.gpu_write == "metal":
        segments += 1 + len(optimizer.metal_rule.private) + len(optimizer.shared_segments)
    return GPUShare(
        workers=max(1, sum(worker.backend in GPU_BACKENDS for worker in workers)),
        adopted_bytes=segments * 4 * layout.n_floats,
    )


def _worker_bytes(config: TrainConfig, model: ModelConfig, layout: Layout, workers: int) -> int:
    """Snapshot, previous snapshot, gradients, activations, and the process itself."""
    copies = 1 + (config.read != "live")
    copies += config.sparsify != "none" and not config.error_feedback  # steps before selection
    copies += config.prediction == "own" and workers > 1
    per_token = ACTIVATIONS_PER_TOKEN * model.hidden_size * model.num_hidden_layers
    per_token += 4 * model.vocab_size
    tokens = config.batch_size * config.seq_len
    return WORKER_BASE_BYTES + 4 * (copies * layout.n_floats + tokens * per_token)


def _check_parameters(config: TrainConfig, model: ModelConfig, memory_bytes: int) -> None:
    """Refuse a model whose parameters alone do not fit, before its blocks are listed one by one."""
    n_bytes, limit = 4 * param_count(model), config.memory_limit * memory_bytes
    if n_bytes > limit:
        raise EnvironmentLacks(
            f"the parameters of model {config.model} alone need {n_bytes / 2**30:.1f} GiB, the "
            f"limit is {limit / 2**30:.1f} GiB ({config.memory_limit:g} of "
            f"{memory_bytes / 2**30:.1f}); use a smaller --model, or raise --memory-limit"
        )


def _check_memory(plan: Plan, memory_bytes: int) -> None:
    limit = plan.config.memory_limit * memory_bytes
    n_bytes = plan.arena_bytes + len(plan.workers) * plan.worker_bytes
    if n_bytes > limit:
        raise EnvironmentLacks(
            f"the run needs {n_bytes / 2**30:.1f} GiB ({plan.arena_bytes / 2**30:.1f} shared, "
            f"{plan.worker_bytes / 2**30:.1f} in each of {len(plan.workers)} workers), the "
            f"limit is {limit / 2**30:.1f} GiB ({plan.config.memory_limit:g} of "
            f"{memory_bytes / 2**30:.1f}); use fewer --workers, a smaller --batch-size or --model, "
            "or raise --memory-limit"
        )
