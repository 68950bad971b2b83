"""A run before anything is started: its model, data, workers, arena, and their bytes.

Everything that can be wrong with the input is found here. What the options leave open is decided
first (`resolve.py`); everything after that takes what it needs from the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mlxhog.config import plugins, rules, schedules
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.strategies import Sync
from mlxhog.data import prepare
from mlxhog.data.clients import Division
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError
from mlxhog.files.quantities import format_count
from mlxhog.machine import machine, verdicts
from mlxhog.machine.workers import resolve_workers
from mlxhog.models import families, registry
from mlxhog.models.families import ModelConfig, param_count, param_spec
from mlxhog.models.mad import MADConfig
from mlxhog.models.registry import load_architecture
from mlxhog.models.sampled_head import SampledHead
from mlxhog.models.spec import ParamSpec
from mlxhog.report import tensorboard
from mlxhog.report.metrics import is_emulated, kernels_used
from mlxhog.strategies import Strategy
from mlxhog.training import evaluation, evenness, kernel_choice, lengths, origin
from mlxhog.training.alternatives import Alternative, laid_out
from mlxhog.training.evaluation import HeldOutPart, Text
from mlxhog.training.job import Setup
from mlxhog.training.memory import Memory, gpu_share, worker_bytes
from mlxhog.training.origin import Origin
from mlxhog.training.resolve import keeps_vocabulary, resolve, sets_vocabulary
from mlxhog.training.resume import Resumption


@dataclass(frozen=True, kw_only=True)
class Plan(Setup):
    """A run of a language model that has passed every check.

    Attributes:
        data: prepared token files.
        held_out: the part of the held-out text that evaluations are of.
        parameters: numbers in the model.
        memory: that the run may take.
        arena_bytes: shared memory.
        worker_bytes: estimate of the private memory of one worker.
        private_state: optimizer segments kept per worker slot.
        shared_state: optimizer segments kept once.
        budget: what this call may add.
        resumption: the run that is resumed; None begins a new one.
        auto: whether a resume is to leave the strategy open: the workers have not been measured
            yet, or there is only one.
        alternatives: the plan with each strategy that the workers' times may choose, all of one
            layout; empty where the strategy is decided. Until then this plan has the first one.
        division: of the text among clients; None where all workers have one text.
        origin: the checkpoint whose weights a new run begins with; None draws initial values.
        automatic: options that a run's folder keeps as numbers, and nobody has given.
        stored_values: options that the run's folder keeps in place of what they have come to.
    """

    data: prepare.Prepared
    held_out: HeldOutPart
    parameters: int
    memory: Memory
    arena_bytes: int
    worker_bytes: int
    private_state: tuple[str, ...]
    shared_state: tuple[str, ...]
    budget: Budget
    resumption: Resumption | None
    auto: bool = False
    alternatives: tuple[Plan, ...] = ()
    division: Division | None = None
    origin: Origin | None = None
    automatic: tuple[str, ...] = ()
    stored_values: Mapping[str, Any] = field(default_factory=dict)

    def with_strategy(self, name: str) -> Plan:
        """The plan with a strategy, which is one of the alternatives."""
        (plan,) = [one for one in self.alternatives if one.strategy.name == name]
        return plan

    @property
    def stored(self) -> TrainConfig:
        """The configuration that a run's folder keeps."""
        changes = dict(self.stored_values)
        if self.auto:
            changes["strategy"] = None
        if "init_from" in changes:  # a run that goes on has begun with what it began with
            changes |= {"resume": None, "reset_optimizer": False}
        return replace(self.config, **changes) if changes else self.config

    @property
    def config(self) -> TrainConfig:
        """The resolved configuration."""
        return self.strategy.config

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one update."""
        return self.strategy.tokens_per_step

    @property
    def mean_tokens_per_step(self) -> float:
        """Tokens in one update, on average over a budget in steps."""
        of_batch = self.config.sequences_per_ticket * self.config.seq_len
        return of_batch * _mean_batches_per_step(self.strategy, self.resumption)

    @property
    def epoch_tokens(self) -> int:
        """Tokens in one pass over the training text."""
        seq_len = self.config.seq_len
        return TokenFile.open(self.data.train).n_sequences(seq_len) * seq_len

    @property
    def free_slots(self) -> int:
        """Workers that can join it."""
        return 0 if self.strategy.fixed else self.strategy.slots - self.strategy.workers

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


def make_plan(config: TrainConfig) -> Plan:
    """Check a configuration against this machine and its data; starts nothing.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input.
        EnvironmentLacks: a backend or a package is missing, or memory is.
    """
    if config.report_to == "tensorboard":
        tensorboard.require()
    config, stored_values = origin.settled(config)
    begin = Origin.of(config)
    own_model = begin is not None and stored_values.get("model") == "auto"
    model = (
        registry.with_changes(begin.opened.config, config.model, config.set)
        if begin and own_model
        else load_architecture(config.model, config.set, config.plugin)
    )
    own_layers = model.layers if isinstance(model, MADConfig) else ()
    if files := plugins.remembered([*vars(config).values(), *own_layers]):
        config = replace(config, plugin=", ".join(files))
    families.check_language_model(model)
    families.check_length(model, config.seq_len)
    here, record = machine.here(), verdicts.load()
    choice = resolve_workers(
        config.workers,
        config.threads,
        machine=here,
        max_workers=config.max_workers,
        serial=config.strategy is not None and config.strategy.one_process,
        tokens_per_s=record.tokens_per_s,
    )
    workers, n_workers = choice.workers, len(choice.workers)
    rules.check_ranks(config.slow, n_workers)
    backends = [worker.backend for worker in workers]
    writers = kernel_choice.choose_writers(config, backends, record)
    kernels = kernel_choice.choose_kernels(config, backends, record)
    memory = Memory(here.memory_bytes, config.memory_limit)
    memory.check_parameters(config.model, model)
    hidden = families.hidden_matrices(model)
    every = resolve(config, model, hidden, workers)
    config, resumption = every[0].config, every[0].resumption

    data = prepare.prepare(
        config.data,
        tokenizer=config.tokenizer,
        text_key=config.text_key,
        val=config.val,
        strict=config.strict_data,
    )
    train, val = data.open(config.seq_len)
    if begin is None:
        model, vocabulary_notes = _with_vocabulary(config, model, data.tokenizer, resumption)
    else:
        follows = not keeps_vocabulary(config) or (own_model and not sets_vocabulary(config))
        begin, model = begin.fitted(config, model, data.tokenizer, own=follows)
        _check_vocabulary(config, model, data.tokenizer)
        model = families.for_tokens(model, bos=data.tokenizer.bos, vocab_size=model.vocab_size)
        vocabulary_notes = list(begin.notes)
    if resumption is not None:
        resumption.check_data(data, train.digest, val.digest)
    spec, sampled = _parameters(config, model, train)
    parameters = param_count(model)

    stored = None if resumption is None else resumption.run.directory
    ways = [Alternative.of(one, model, hidden, n_workers, data, train, stored) for one in every]
    before = None if resumption is None else resumption.evaluated_bytes()
    held_out = HeldOutPart.of(data, config, parameters, before)
    tables = {evaluation.SEGMENT: evaluation.segment(held_out)}
    if len(ways) > 1:
        tables |= evenness.segment(n_workers)
    live, live_notes = memory.keeps_copies(config.live, parameters)
    ways, layout = laid_out(ways, memory, spec, tables, live=live)
    shares = [gpu_share(way.config, workers, writers, way.optimizer, layout) for way in ways]

    def plan_of(way: Alternative) -> Plan:
        resolved, config, strategy = way.resolved, way.config, way.strategy
        batches_per_step = _mean_batches_per_step(strategy, resumption)
        budget, repeats = resolved.budget, list[str]()
        if resumption is not None:
            budget = resumption.in_steps(budget, batches_per_step)
        if config.follow is None:
            repeats = lengths.repetition(
                budget,
                train,
                seq_len=config.seq_len,
                tokens_per_step=batches_per_step * config.sequences_per_ticket * config.seq_len,
            )
        return Plan(
            strategy=strategy,
            model=model,
            data=data,
            held_out=held_out,
            workers=workers,
            writers=writers,
            kernels=kernels.of_workers,
            notes=(
                *vocabulary_notes,
                *lengths.notes(train, val, config.seq_len),
                *choice.notes,
                *writers.notes,
                *kernels.notes,
                *live_notes,
                *resolved.notes,
                *([] if way.division is None else [str(way.division)]),
                *repeats,
            ),
            layout=layout,
            parameters=parameters,
            memory=memory,
            arena_bytes=layout.occupied_bytes,
            worker_bytes=worker_bytes(config, model, layout, n_workers),
            private_state=tuple(way.optimizer.state_segments),
            shared_state=tuple(way.optimizer.shared_segments),
            decay=frozenset(name for name, one in spec.items() if one.decay),
            gpu_share=max(shares, key=lambda share: share.adopted_bytes),
            batches=way.batches,
            schedule=partial(
                schedules.of(config).of_run,
                resolved.lr,
                _epochs(way.n_tickets, batches_per_step + _dropped(config), resumption),
            ),
            side_jobs=Text(data.val, data.tokenizer, held_out.asked_bytes).open,
            sampled=sampled,
            budget=lengths.in_steps(
                budget,
                train,
                epochs=config.epochs,
                seq_len=config.seq_len,
                batch_size=config.sequences_per_ticket,
                n_tickets=way.n_tickets,
                batches_per_step=batches_per_step,
            ),
            resumption=resumption,
            auto=resolved.auto,
            division=way.division,
            origin=begin,
            automatic=resolved.automatic,
            stored_values=stored_values,
        )

    plans = tuple(map(plan_of, ways))
    for plan in plans:
        memory.check_run(plan.arena_bytes, plan.worker_bytes, n_workers)
    if len(plans) == 1:
        return plans[0]
    common = [note for note in plans[0].notes if all(note in plan.notes for plan in plans)]
    return replace(plans[0], notes=tuple(common), alternatives=plans)


def _mean_batches_per_step(strategy: Strategy, resumption: Resumption | None) -> float:
    state = {} if resumption is None else resumption.checkpoint.state
    return strategy.mean_batches_per_step(went_async=bool(state.get("went_async")))


def _dropped(config: TrainConfig) -> int:
    """Batches that each step throws away."""
    return config.strategy.backup_workers if isinstance(config.strategy, Sync) else 0


def _epochs(n_tickets: int, per_step: float, resumption: Resumption | None) -> schedules.Epochs:
    """The epochs of a run, of which each step takes so many batches, with those it throws away."""
    if resumption is None:
        return schedules.Epochs(n_tickets, per_step)
    version, done = int(resumption.checkpoint.state["version"]), 0
    if (at := resumption.position()) is not None:
        done = at["epoch"] * at["n"] + at["watermark"] + len(at["done"])
    return schedules.Epochs(n_tickets, per_step, version, done)


def _parameters(
    config: TrainConfig, model: ModelConfig, train: TokenFile
) -> tuple[dict[str, ParamSpec], SampledHead | None]:
    """The model's parameters, and the words of its training loss where they are a sample.

    Raises:
        ConfigError: this model cannot be trained with a sample.
    """
    spec = dict(param_spec(model))
    if config.sampled_head is None:
        return spec, None
    if model.tie_word_embeddings:
        raise ConfigError(
            f"sampled_head needs a head of its own, and model {config.model} has its head tied to "
            "the embedding; untie it in the model (tie_word_embeddings or tie_weights: false), or "
            "leave sampled_head out"
        )
    if config.sampled_head >= model.vocab_size:
        raise ConfigError(
            f"sampled_head draws {config.sampled_head} words, and model {config.model} has "
            f"vocab_size {model.vocab_size}; draw fewer, or leave it out for the whole vocabulary"
        )
    head = families.head(model)
    spec[head] = replace(spec[head], kind="rows")  # a step touches few of them
    counts = train.frequencies(model.vocab_size)
    return spec, SampledHead.of_counts(config.sampled_head, counts)


def _with_vocabulary(
    config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer, resumption: Resumption | None
) -> tuple[ModelConfig, list[str]]:
    """The model over the tokenizer's ids, and what the user should know of that.

    A run that goes on has its checkpoint's vocabulary; that of a config.json is kept.

    Raises:
        ConfigError: a vocabulary that is kept is smaller than the tokenizer's.
    """
    own, rows, spec = model.vocab_size, tokenizer.vocab_size, config.tokenizer
    if resumption is not None:
        rows = families.read(resumption.checkpoint.config).vocab_size
        return families.for_tokens(model, bos=tokenizer.bos, vocab_size=rows), []
    notes = []
    size = spec.removeprefix("bpe:")
    if size != spec and tokenizer.n_ids < int(size):
        notes.append(
            f"tokenizer {spec} learnt {tokenizer.n_ids:,} ids: this text has no more pairs to merge"
        )
    if keeps_vocabulary(config):
        _check_vocabulary(config, model, tokenizer)
        if own > rows and registry.is_stored(config.model):
            notes.append(
                f"model {config.model} keeps its vocabulary of {own:,}; tokenizer {spec} needs "
                f"{rows:,} of it (--set vocab_size={rows})"
            )
        return families.for_tokens(model, bos=tokenizer.bos, vocab_size=own), notes
    fitted = families.for_tokens(model, bos=tokenizer.bos, vocab_size=rows)
    if own != rows:
        notes.append(
            f"vocabulary {rows:,}, that of tokenizer {spec}, in place of {own:,} of model "
            f"{Path(config.model).name}: {format_count(param_count(fitted))} parameters, not "
            f"{format_count(param_count(model))}"
        )
    return fitted, notes


def _check_vocabulary(config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.n_ids > model.vocab_size:
        raise ConfigError(
            f"model {config.model} has vocab_size {model.vocab_size}, tokenizer {config.tokenizer} "
            f"{tokenizer.n_ids} ids, one of which is BOS, the start of a document; set vocab_size "
            f"to at least {tokenizer.n_ids} (--set vocab_size={tokenizer.vocab_size}), or choose "
            "another model or tokenizer"
        )
