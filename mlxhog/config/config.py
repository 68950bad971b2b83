"""The options of a training run: one definition for YAML, flags, help and docs/options.md."""

from dataclasses import dataclass
from functools import partial

import yaml

from mlxhog.config import contradictions
from mlxhog.config.asynchrony import LATE, Asynchrony
from mlxhog.config.fine_tuning import FineTuning
from mlxhog.config.local_methods import LOCAL_STRATEGIES, LocalMethods
from mlxhog.config.options import convert_fields, option, spelt
from mlxhog.errors import ConfigError
from mlxhog.files.quantities import Interval

DEFAULT_TIME_S = 60.0
DEFAULTS = {"optimizer": "muon", "model": "tiny", "tokenizer": "bytes"}
BACKOFF_BETA = 0.37
EMULATED = "metal-emulated"
"""Metal source that runs on the CPU, of `gpu_write` and `kernels`."""

_data = partial(option, group="data")
_model = partial(option, group="model")
_workers = partial(option, group="workers")
_strategy = partial(option, group="strategy")
_sparse = partial(option, group="sparse")
_optimizer = partial(option, group="optimizer")
_schedule = partial(option, group="schedule")
_budget = partial(option, group="budget")
_run = partial(option, group="run")
_safety = partial(option, group="safety")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LocalMethods, Asynchrony, FineTuning):
    """One training run. Defaults < YAML < flags; an unknown key is an error.

    Values are converted and checked when the object is made, so every instance is legal.

    Raises:
        ConfigError: naming every wrong value and every contradiction at once.
    """

    data: str = _data("sotu", "corpus shipped with the package, or a text file, folder or glob")
    tokenizer: str = _data(
        "auto",
        "bytes, bpe:N (N ids, learnt from the text), or a tokenizer.json; auto is that of what "
        "init_from or resume names, else bytes",
    )
    text_key: str | None = _data(None, "field of a JSON line that holds the text")
    val: str = _data(
        "every-12th", "held-out text, if data has none: every-12th (document), or tail (of each)"
    )
    follow: str | None = _data(
        None,
        "folder whose new text files and examples are trained on as they arrive, each once, in "
        "place of data, which stays the held-out text; without a budget until mlxhog stop",
        none="off",
    )

    model: str = _model(
        "auto",
        "architecture: a name (mlxhog models lists them), or a YAML or JSON file; auto is that of "
        "what init_from or resume names, else tiny; its vocabulary is the tokenizer's",
        aliases=("size",),
    )
    set: str | None = _model(
        None,
        "other values for fields of the model, such as hidden_size=256; several with commas or one "
        "flag each (mlxhog models tiny lists the fields)",
        repeats=True,
    )
    seq_len: int = _model(
        256, "length of a training sequence", unit="tokens", low=1, aliases=("max_seq_length",)
    )
    batch_size: int = _model(4, "sequences in one gradient of one worker", low=1)
    grad_accumulation: int = _model(
        1, "gradients averaged into one step", low=1, aliases=("grad_accumulation_steps",)
    )
    kernels: str = _model(
        "auto",
        "forms of the model's operations: plain, hand-written for CPU or GPU, or the fastest here",
        choices=("auto", "reference", "native", "metal", EMULATED),
    )
    compute_dtype: str = _model(
        "float32",
        "type of a gradient's matrix products; parameters, gates, norms and cells stay float32",
        choices=("float32", "bfloat16"),
    )

    workers: str = _workers("auto", "a number, or backends such as mlx:gpu,torch:cpu*3")
    threads: int | None = _workers(
        None, "threads of each worker; auto shares the cores", low=1, none="auto"
    )
    max_workers: int | None = _workers(
        None,
        "worker slots in the arena, each with room for its optimizer state; auto is two more than "
        "workers where others can join (hogwild) and memory is plenty",
        low=1,
        high=4096,
        none="auto",
    )
    cpu_blas: str = _workers(
        "auto",
        "matrix products of MLX where kernels=reference: the fastest library here, or its own",
        choices=("auto", "reference"),
    )
    memory_limit: float = _workers(
        0.8, "share of this machine's memory that a run may use", above=0, high=1
    )
    slow: str | None = _workers(
        None,
        "for experiments: workers made slow on purpose, by rank; 1=2 doubles the time of every "
        "gradient of worker 1, 1=random:0.2:3 makes it 3 times as long with probability 0.2, "
        "1=late:10 begins 10 s late; with commas, several workers",
    )

    strategy: str = _strategy(
        "auto",
        "how the workers train together, see docs/training.md; auto measures how evenly they "
        "compute, and takes hogwild or sync with sync_shares=speed, or serial for one; cyclades is "
        "answered with advice",
        choices=(
            "auto", "serial", "hogwild", "sync", "round_robin", *LOCAL_STRATEGIES, "async_ps",
            "ssp", "locked", "aig", "sim", "cyclades",
        ),
    )  # fmt: skip
    predict: str = _strategy(
        "auto",
        "where a gradient is taken: at the parameters, or where they will be when it lands, by "
        "their movement since this worker's last read (own) or by the last steps of anyone (last); "
        "auto is last where hogwild shares moments, own where it does not, else none",
        choices=("auto", "none", "own", "last"),
    )
    async_after: float = _strategy(
        0.0, "hogwild: part of the budget trained in sync first", low=0, high=1
    )
    sync_shares: str = _strategy(
        "equal",
        "sync: sequences of a round that each worker computes; as many as the others, or in "
        "proportion to its measured speed",
        choices=("equal", "speed"),
    )
    read: str = _strategy(
        "snapshot",
        "what a worker computes with: a copy, or the shared parameters themselves",
        choices=("snapshot", "live"),
    )
    write: str = _strategy(
        "auto",
        "how a CPU adds a step: stripe locks, plain adds that may get lost, or compare-and-swap; "
        "auto is lossless, and cas beside Metal kernels",
        choices=("auto", "lossless", "racy", "cas"),
    )
    gpu_write: str = _strategy(
        "cpu",
        "who adds the steps of GPU workers: the CPU, a Metal kernel in place, or what doctor found "
        "safe here; metal-emulated runs every worker's steps through the Metal source on the CPU",
        choices=("cpu", "metal", "auto", EMULATED),
    )
    determinism: str = _strategy(
        "none",
        "rounds: only strategies whose runs end with the same bits again; record: lock-free, with "
        "a log by which mlxhog replay does the run again bit for bit",
        choices=("none", "rounds", "record", "replay"),
    )
    force: bool = _strategy(
        False,
        "gpu_write=metal, kernels=metal and read=live although doctor found no proof that they are "
        "safe",
    )

    sparsify: str = _sparse(
        "none",
        "what is written of a step: all, the share F of each parameter's elements with the largest "
        "steps (topk:F), or those whose step has reached F times lr (threshold:F)",
    )
    error_feedback: bool = _sparse(
        True, "sparsify: what is not written waits in the worker for later steps, or is dropped"
    )
    sampled_head: int | None = _sparse(
        None,
        "words drawn for each batch, beside its own, that the training loss is taken over; "
        "evaluation takes all",
        low=1,
        none="off",
    )
    blocks: str = _sparse(
        "all",
        "hogwild: what a worker writes, every parameter or only blocks that nobody else writes",
        choices=("all", "disjoint"),
    )
    rotate_every: int = _sparse(
        100, "blocks=disjoint: steps before a worker moves to other blocks", unit="steps", low=1
    )

    optimizer: str = _optimizer(
        "auto",
        "update rule; auto is muon, and that of the run where one is resumed",
        choices=(
            "auto", "adamw", "adan", "apollo", "apollo-mini", "lion", "momentum", "muon", "sgd",
            "soap",
        ),
    )  # fmt: skip
    lr: float | None = _optimizer(
        None,
        "step size at the top of the schedule; auto is the optimizer's own, by width and strategy",
        above=0, aliases=("learning_rate",), none="auto",
    )  # fmt: skip
    lr_workers: str = _optimizer(
        "auto",
        "factor of lr where P workers add steps of their own (hogwild, round_robin, async_ps, ssp, "
        "locked, aig, sim): none, 1/sqrt(P), or 1/P; auto is sqrt for Lion, none for the others",
        choices=("auto", "none", "sqrt", "linear"),
    )
    momentum: float = _optimizer(0.9, "momentum of optimizer momentum", low=0, below=1)
    beta1: float | None = _optimizer(
        None,
        "all but SGD and momentum: decay of the first moment; auto is 0.9, and 0.75 where muon "
        "takes averaged gradients (sync), 0.95 where it looks ahead of three or more workers",
        low=0, below=1, none="auto",
    )  # fmt: skip
    beta2: float = _optimizer(0.95, "decay of the second moment; Lion: of its mean", low=0, below=1)
    beta2_half_life: int | None = _optimizer(
        None,
        "sets beta2 instead: after so much text a gradient has half its weight; beta2 is "
        "2^(-tokens in one step / half-life)",
        unit="tokens",
        low=1,
        none="off",
    )
    beta3: float = _optimizer(
        0.92, "Adan: decay of the mean of gradients' differences", low=0, below=1
    )
    eps: float = _optimizer(1e-8, "added to the root of the second moment", above=0)
    nesterov: float | None = _optimizer(
        None,
        "Muon: weight of the gradient itself in a direction, beside its mean; auto is 0.1, and "
        "0.15 where it looks ahead of three or more workers",
        low=0, high=1, none="auto",
    )  # fmt: skip
    orthogonalization: str = _optimizer(
        "polar3",
        "Muon: three steps of Polar Express, or five of Newton and Schulz",
        choices=("polar3", "ns5"),
    )
    orthogonalization_rows: int | None = _optimizer(
        None, "Muon: rows orthogonalised together, which is cheaper; all is the whole matrix",
        low=1, none="all",
    )  # fmt: skip
    orthogonalization_every: int | None = _optimizer(
        None,
        "Muon: whole matrices at every Nth step of a worker, in between their rows, one by one or "
        "as orthogonalization_rows says",
        unit="steps", low=2, none="off",
    )  # fmt: skip
    orthogonalization_dtype: str = _optimizer(
        "auto",
        "Muon: type of those factors in its matrix products that bear it; auto is bfloat16 for "
        "polar3 where the CPU multiplies it faster",
        choices=("auto", "float32", "bfloat16"),
    )
    projection_rank: int | None = _optimizer(
        None, "APOLLO: rank of projected gradients; auto is a quarter of a matrix's shorter side",
        low=1, none="auto",
    )  # fmt: skip
    projection_scale: float | None = _optimizer(
        None, "APOLLO: its root multiplies updates; auto is a matrix's shorter side over the rank",
        above=0, none="auto",
    )  # fmt: skip
    projection_every: int = _optimizer(
        200, "APOLLO: steps before a projection is drawn anew", unit="steps", low=1
    )
    projection_compat: str = _optimizer(
        "guarded",
        "APOLLO: after a gradient of zeros the next update is limited as a first one, or as in the "
        "authors' package, which stops such a matrix for about 1,850 steps; official has the "
        "package's eps, 1e-6, in place of 1e-8",
        choices=("guarded", "official"),
    )
    precondition_every: int = _optimizer(
        10, "SOAP: steps between two refreshes of its eigenbases", unit="steps", low=1
    )
    weight_decay: float = _optimizer(
        0.1,
        "decay of weight matrices, decoupled; with momentum it is part of the gradient",
        low=0,
    )
    clip: float = _optimizer(0.5, "largest gradient norm; 0 switches clipping off", low=0)
    moments: str = _optimizer(
        "auto",
        "AdamW, Muon: moments of each worker, or one pair for all; auto is shared for muon under "
        "hogwild",
        choices=("auto", "private", "shared"),
        aliases=("second_moment",),
    )

    schedule: str = _schedule(
        "cosine",
        "step size over the run; wsd is warm-up, stable, decay; backoff is the 1/k rule of "
        "Hogwild, in stages; inverse is 1/k itself",
        choices=("constant", "cosine", "wsd", *contradictions.FALLING_SCHEDULES),
    )
    warmup: float = _schedule(0.03, "part of the budget with a rising step size", low=0, below=1)
    lr_floor: float = _schedule(0.1, "step size at the end, as a share of lr", low=0, high=1)
    backoff_steps: int = _schedule(
        1000,
        "backoff: updates with the first step size; inverse: updates until it is half",
        unit="steps",
        low=1,
    )
    backoff_epochs: int | None = _schedule(
        None,
        "passes over the text instead of backoff-steps; the step size changes between them only",
        low=1,
        none="off",
    )
    backoff_beta: float = _schedule(
        BACKOFF_BETA, "backoff: factor of the step size after each stage", above=0, below=1
    )

    steps: int | None = _budget(
        None, "end after this many steps", unit="steps", low=1, aliases=("iters",)
    )
    tokens: int | None = _budget(None, "end after this many tokens", unit="tokens", low=1)
    time: float | None = _budget(
        None,
        "end after this time; 60 s where no budget is given; the first budget reached ends the run",
        unit="s",
        above=0,
    )

    eval_every: Interval = _run(
        Interval(seconds=10),
        "held-out evaluation, every N steps, or every so often and at the end, or off; by time it "
        "is left out where evaluations have taken more than 5 % of the workers' time",
        aliases=("steps_per_eval",),
    )
    eval_tokens: int | None = _run(
        None,
        "held-out text in one evaluation; auto is 64 kB of text, less for a model that is slow for "
        "its budget",
        unit="tokens",
        low=1,
        none="auto",
    )
    sample_every: Interval = _run(Interval(seconds=30), "sample of text, likewise")
    save_every: Interval = _run(
        Interval(seconds=300), "checkpoint, likewise; the end always saves one"
    )
    keep_last: int = _run(3, "checkpoints kept", low=1)
    live: str = _run(
        "auto",
        "keep two more copies of the parameters in shared memory, for those who read the weights "
        "while they are trained; auto does where they take up to a tenth of what a run may use",
        choices=("auto", "on", "off"),
    )
    live_every: Interval = _run(
        Interval(seconds=1), "a copy for those readers, likewise, while there are any"
    )
    resume: str | None = _run(
        None, "go on with a run: a path, its name, latest, NAME/best, or one of its checkpoints"
    )
    reset_optimizer: bool = _run(
        False, "resume: without the moments, such as those of another optimizer"
    )
    report_to: str = _run(
        "none",
        "tensorboard also writes losses and tokens/s as events that tensorboard --logdir shows",
        choices=("none", "tensorboard"),
    )
    seed: int = _run(0, "seed of initial values, data order and samples", low=0, high=2**32 - 1)
    out: str = _run("runs", "folder that holds the runs")
    name: str | None = _run(
        None, "name of the run, after the date; the corpus by default", aliases=("project_name",)
    )

    restarts: int = _safety(5, "restarts of one worker in ten minutes before the run ends", low=0)
    heartbeat_timeout_s: float = _safety(
        60.0, "silence after which a worker is restarted", unit="s", above=0
    )
    max_nonfinite: int = _safety(
        20, "steps in a row with a gradient that is not finite before the run ends", low=1
    )
    on_torn: str = _safety(
        "count",
        "batch whose worker died while adding its step: only count it, or compute it again",
        choices=("count", "retry"),
    )

    def __post_init__(self) -> None:
        """Convert and check every value, and set what follows from others.

        That is the strategy, where only one has what is asked for; and of a run that begins, the
        default budget, optimizer, model and tokenizer: a resumed one brings them along, and one
        that begins with a checkpoint's weights its model and tokenizer.

        Raises:
            ConfigError: all problems, one per line.
        """
        problems = convert_fields(self)
        if not problems:
            if self.optimizer == "auto" and self.resume is None:
                object.__setattr__(self, "optimizer", DEFAULTS["optimizer"])
            object.__setattr__(self, "strategy", contradictions.implied_strategy(self))
            problems = [f"{name}: {text}" for name, text in contradictions.of(self)]
        if problems:
            raise ConfigError("\n".join(problems))
        if self.resume is not None:
            return
        for name, default in DEFAULTS.items():
            if getattr(self, name) == "auto" and self.init_from is None:
                object.__setattr__(self, name, default)
        if self.follow is None and not self.has_budget:
            object.__setattr__(self, "time", DEFAULT_TIME_S)

    @property
    def sequences_per_ticket(self) -> int:
        """Sequences in one batch, which may be several micro-batches."""
        return self.batch_size * self.grad_accumulation

    @property
    def top_lr(self) -> float:
        """`lr` as a number, which it is once `mlxhog.optim.for_model` has seen the model."""
        if self.lr is None:
            raise ConfigError("lr is auto, and no model has said what that is; give a number")
        return self.lr

    @property
    def shares_moments(self) -> bool:
        """Whether all workers have one pair of moments."""
        if self.moments != "auto":
            return self.moments == "shared"
        whole = self.sparsify == "none" and self.blocks == "all"
        return self.optimizer == "muon" and self.strategy == "hogwild" and whole

    @property
    def prediction(self) -> str:
        """Where gradients are taken: one of none, own, last."""
        if self.predict in ("none", "last"):
            return self.predict
        if self.strategy != "hogwild" or self.read == "live" or self.delay_feedback:
            return "none"
        return "last" if self.predict == "auto" and self.shares_moments else "own"

    @property
    def adds_steps_apart(self) -> bool:
        """Whether each worker adds steps of its own to parameters that others move, too."""
        return self.strategy in (*LATE, "round_robin")

    @property
    def has_budget(self) -> bool:
        """Whether it says how long to train; `resume` without it is the rest of the run's own."""
        budgets = (self.steps, self.tokens, self.time, self.epochs)
        return any(budget is not None for budget in budgets)

    def to_yaml(self) -> str:
        """Return a YAML text with which `train --config` repeats this run.

        `resume` and what goes with it are left out: they say where one command began, not what the
        run is.
        """
        values = spelt(self)
        del values["resume"], values["reset_optimizer"]
        # ASCII only: PyYAML does not read back every character that it writes as itself.
        return yaml.safe_dump(values, sort_keys=False)
