"""A run before anything is started: its model, data, workers, arena, and their bytes.

All errors of the input are found here. Open options are resolved first (`resolve.py`); the rest of
the training takes its values from the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mlxhog.arena import Layout
from mlxhog.base.quantities import format_count
from mlxhog.cluster import anchor
from mlxhog.cluster.identity import Identity
from mlxhog.cluster.link import LinkJob
from mlxhog.config import plugins
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.data import prepare
from mlxhog.data.clients import Division
from mlxhog.data.counts import SAMPLE
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError
from mlxhog.models import families, ngrams, registry
from mlxhog.models.families import ModelConfig, param_count, param_spec
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.registry import load_architecture
from mlxhog.models.sampled_head import SampledHead
from mlxhog.models.spec import ParamSpec
from mlxhog.report import tensorboard
from mlxhog.report.metrics import is_emulated, kernels_used
from mlxhog.training import (
    choose_strategy,
    evaluation,
    init_from,
    lengths,
    terms,
    vocabulary,
)
from mlxhog.training.alternatives import Alternative, laid_out, mean_batches_per_step
from mlxhog.training.engines import RunEngines
from mlxhog.training.evaluation import HeldOutPart, Text
from mlxhog.training.init_from import InitialWeights
from mlxhog.training.job import Setup
from mlxhog.training.memory import GradientMemory, Memory, check_gpu, gpu_share, worker_bytes
from mlxhog.training.resolve import Resolution, resolve, resumed
from mlxhog.training.resume import Resumption


@dataclass(frozen=True, kw_only=True)
class Plan(Setup):
    """A run of a language model that has passed every check.

    Attributes:
        data: prepared token files.
        held_out: the part of the held-out text that evaluations score.
        parameters: numbers in the model.
        memory: limits of the run's memory.
        arena_bytes: shared memory.
        gradient_memory: of a worker's gradients.
        worker_bytes: estimate of the private memory of one worker.
        private_state: optimizer segments kept per worker slot.
        shared_state: optimizer segments kept once.
        budget: of this call.
        resolution: of the options; `config` is its result.
        alternatives: the plan with each candidate strategy, all of one layout; empty if there is
            only one. Until one is chosen this plan has the first.
        measured: whether the workers were measured before one was chosen.
        division: of the text among clients; None if all workers share one text.
        initial_weights: of a checkpoint, for a new run; None draws initial values.
    """

    data: prepare.Prepared
    held_out: HeldOutPart
    parameters: int
    memory: Memory
    arena_bytes: int
    gradient_memory: GradientMemory
    worker_bytes: int
    private_state: tuple[str, ...]
    shared_state: tuple[str, ...]
    budget: Budget
    resolution: Resolution
    alternatives: tuple[Plan, ...] = ()
    measured: bool = False
    division: Division | None = None
    initial_weights: InitialWeights | None = None

    def with_strategy(self, name: str, *, measured: bool) -> Plan:
        """The plan with one of the strategies of `alternatives`.

        Args:
            name: of the strategy.
            measured: whether the workers were measured.
        """
        plan = self.alternatives[self.place(name)]
        return replace(plan, alternatives=self.alternatives, measured=measured)

    def place(self, name: str) -> int:
        """The place of a strategy in `alternatives`."""
        return [one.strategy.name for one in self.alternatives].index(name)

    @property
    def keep_last(self) -> int:
        """Checkpoints that are kept; tables fill a disk soon, so of those one."""
        auto = 3 if self.strategy.tables is None else 1
        return auto if self.config.keep_last is None else self.config.keep_last

    @property
    def resumption(self) -> Resumption | None:
        """The run that is resumed; None for a new one."""
        return self.resolution.resumption

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one update."""
        return self.strategy.tokens_per_step

    @property
    def mean_tokens_per_step(self) -> float:
        """Tokens in one update, on average over a budget in steps."""
        of_batch = self.config.sequences_per_ticket * self.config.seq_len
        return of_batch * mean_batches_per_step(self.strategy, self.resumption)

    @property
    def epoch_tokens(self) -> int:
        """Tokens in one pass over the training text."""
        seq_len = self.config.seq_len
        return TokenFile.open(self.data.train).n_sequences(seq_len) * seq_len

    @property
    def free_slots(self) -> int:
        """Number of workers that can join."""
        ways = [one.strategy for one in self.alternatives or (self,)]
        return max(0 if way.fixed else way.slots - way.workers for way in ways)

    @property
    def emulated(self) -> bool:
        """Whether Metal source runs on the CPU, now or before a resume; see `is_emulated`."""
        return is_emulated(self.writers.gpu_write, self.kernels_used) or self.emulated_before

    @property
    def emulated_before(self) -> bool:
        """Whether earlier steps of a resumed run were emulated."""
        earlier = self.resumption
        return earlier is not None and bool(earlier.checkpoint.state["emulated"])

    @property
    def kernels_used(self) -> str:
        """The distinct forms of the model's operations."""
        return kernels_used(self.kernels)


def make_plan(config: TrainConfig, *, progress: bool = False) -> Plan:
    """Check a configuration against this machine and its data; starts nothing.

    Args:
        config: of the call.
        progress: of `prepare.prepare`.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input.
        EnvironmentLacks: a backend, a package or memory is missing.
    """
    if config.report_to == "tensorboard":
        tensorboard.require()
    asked = init_from.located(config)
    config = init_from.with_model_and_tokenizer(asked)
    weights = InitialWeights.of(config)
    model, config = _architecture(asked, config, weights)
    engines = RunEngines.of(config)
    memory = Memory(engines.machine_bytes, config.memory_limit)
    memory.check_parameters(config.model, model)
    hidden = families.hidden_matrices(model)
    config, resumption = resumed(config, model, hidden)

    data = prepare.prepare(
        config.data,
        tokenizer=config.tokenizer,
        width=model.hidden_size,
        text_key=config.text_key,
        loss_on=config.loss_on,
        val=config.val,
        strict=config.strict_data,
        skip_machine_data=config.skip_machine_data,
        progress=progress,
    )
    train, val = data.open(config.seq_len)
    config = config.having(tokenizer=data.spec)
    if weights is None:
        model, model_notes = vocabulary.fitted(config, model, data.tokenizer, resumption)
    else:
        weights, model = _fitted_weights(asked, config, weights, model, data.tokenizer)
        model_notes = list(weights.notes)
    if resumption is not None:
        resumption.check_data(data, train.digest, val.digest)
    resolutions = resolve(asked, config, model, hidden, engines.workers, resumption)
    config = resolutions[0].resolved
    if train.n_tokens > SAMPLE:
        of = f"{format_count(SAMPLE)} of the {format_count(train.n_tokens)} training tokens"
        model_notes = [*model_notes, f"counts are of a sample: {of}"]
    spec, sampled = _parameters(config, model, train)

    model_notes = [*model_notes, *_table_notes(config, model)]
    if config.cluster is not None and ngrams.of(model) is not None:
        raise ConfigError(
            f"cluster: model {config.model} has tables of n-grams, which machines do not average; "
            "take a model without them, or leave cluster out"
        )

    parameters, n_workers = param_count(model), len(engines.workers)
    is_open = len(resolutions) > 1
    ways = [
        Alternative.of(one, model, hidden, n_workers, data, train, is_open=is_open)
        for one in resolutions
    ]
    before = None if resumption is None else resumption.evaluated_bytes()
    if resumption is not None and (link := resumption.run.model).exists() and not link.is_symlink():
        model_notes = [
            *model_notes,
            f"{link} is a folder of its own, as in a copied run, and stays "
            f"as it is; the newest model is in {resumption.run.checkpoints}",
        ]
    held_out = HeldOutPart.of(data, config, parameters, before)
    origin = config.init_from if resumption is None else resumption.began_with().get("init_from")
    if origin is not None and config.eval_every.on:
        seen, unknown = init_from.seen_before(str(origin), data)
        held_out = replace(held_out, seen=seen)
        model_notes += filter(None, [seen, unknown])
    tables = {evaluation.SEGMENT: evaluation.segment(held_out)}
    if is_open:
        tables |= {**choose_strategy.segment(n_workers), **terms.segment(n_workers)}
    live, live_notes = memory.keeps_copies(config.live, parameters)
    max_workers = config.max_workers
    if config.cluster is not None:
        tables |= anchor.segments(residual=config.cluster.round_dtype == "bfloat16")
        max_workers = None if max_workers is None else max_workers + 1  # the link's slot
    ways, layout = laid_out(ways, memory, max_workers, spec, tables, live=live)
    notes = (*model_notes, *lengths.notes(train, val, config.seq_len), *engines.notes, *live_notes)
    of_gpu = [
        gpu_share(w.config, engines.workers, engines.writers, w.optimizer, layout) for w in ways
    ]
    share = max(of_gpu, key=lambda share: share.adopted_bytes)
    of_ways = [GradientMemory.of(way.config, model, layout, n_workers) for way in ways]
    gradient = max(of_ways, key=lambda gradient: gradient.fixed_bytes)
    check_gpu(config.micro_batch, gradient, share, engines.workers, engines.machine_bytes)

    plans = tuple(
        Plan(
            config=way.config,
            strategy=way.strategy,
            model=model,
            data=data,
            held_out=held_out,
            workers=engines.workers,
            writers=engines.writers,
            kernels=engines.kernels,
            notes=(*notes, *way.notes(train)),
            layout=layout,
            parameters=parameters,
            memory=memory,
            arena_bytes=layout.occupied_bytes,
            gradient_memory=gradient,
            worker_bytes=worker_bytes(gradient, config.micro_batch),
            private_state=tuple(way.optimizer.state_segments),
            shared_state=tuple(way.optimizer.shared_segments),
            decay=frozenset(name for name, one in spec.items() if one.decay),
            gpu_share=share,
            batches=way.batches,
            schedule=way.schedule(),
            side_jobs=Text(data.val, data.tokenizer, held_out.asked_bytes).open,
            sampled=sampled,
            budget=way.budget_in_steps(train),
            resolution=way.resolution,
            division=way.division,
            initial_weights=weights,
            link=_link(way.config, layout, data, train),
        )
        for way in ways
    )
    for plan in plans:
        memory.check_run(plan.arena_bytes, plan.worker_bytes, n_workers)
    if len(plans) == 1:
        return plans[0]
    common = [note for note in plans[0].notes if all(note in plan.notes for plan in plans)]
    return replace(plans[0], notes=tuple(common), alternatives=plans)


def _link(
    config: TrainConfig, layout: Layout, data: prepare.Prepared, train: TokenFile
) -> LinkJob | None:
    """The job of the link to the run's cluster, if it has one; its log is in the run's folder."""
    if config.cluster is None:
        return None
    identity = Identity.of(
        config.cluster,
        layout,
        tokenizer=data.tokenizer.sha256,
        data=f"{train.digest} in sequences of {config.seq_len}",
        batch_size=config.sequences_per_ticket,
        seed=config.seed,
    )
    return LinkJob(cluster=config.cluster, identity=identity, log=Path("link.log"))


def _architecture(
    asked: TrainConfig, config: TrainConfig, weights: InitialWeights | None
) -> tuple[ModelConfig, TrainConfig]:
    """The model, and the configuration with the plugin files that it needs."""
    if weights is not None and asked.model == "auto":
        model = registry.with_changes(weights.opened.config, config.model, config.set)
    else:
        model = load_architecture(config.model, config.set, config.plugin)
    own_layers = model.layers if isinstance(model, MADConfig) else ()
    if files := plugins.remembered([*vars(config).values(), *own_layers]):
        config = config.having(plugin=", ".join(files))
    families.check_language_model(model)
    families.check_length(model, config.seq_len)
    return model, config


def _table_notes(config: TrainConfig, model: ModelConfig) -> list[str]:
    """A note on the model's tables of n-grams, if it has any.

    Raises:
        ConfigError: it has none, and `ngram_lr` is given.
    """
    tables, lr = ngrams.of(model), config.ngram_lr
    if tables is None:
        if lr != TrainConfig.ngram_lr:
            raise ConfigError(
                f"ngram_lr is {lr}, and model {config.model} has no tables of n-grams; add some, "
                "such as --set ngram_orders=2-8, or leave ngram_lr out"
            )
        return []
    rows = sum(spec.shape[0] for spec in tables.specs.values())
    return [
        f"tables of n-grams, orders {', '.join(map(str, tables.orders))}: {rows:,} rows of "
        f"{tables.dim}, {format_count(tables.floats)} numbers beside the parameters"
    ]


def _fitted_weights(
    asked: TrainConfig,
    config: TrainConfig,
    weights: InitialWeights,
    model: ModelConfig,
    tokenizer: Tokenizer,
) -> tuple[InitialWeights, ModelConfig]:
    """The initial weights and the model, both with the run's vocabulary."""
    own_model = asked.model == "auto" and not vocabulary.is_set(config)
    follows = own_model or not vocabulary.is_kept(config)
    weights, model = weights.fitted(config, model, tokenizer, own=follows)
    vocabulary.check(config, model, tokenizer)
    model = families.for_tokens(model, bos=tokenizer.bos, vocab_size=model.vocab_size)
    return weights, model


def _parameters(
    config: TrainConfig, model: ModelConfig, train: TokenFile
) -> tuple[dict[str, ParamSpec], SampledHead | None]:
    """The model's parameters, and the sampled words of its training loss, if any.

    Raises:
        ConfigError: this model cannot be trained with sampled words.
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
