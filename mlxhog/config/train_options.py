"""The options of a training run: one definition for YAML, flags, help and `mlxhog options`."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from mlxhog.base import plain_yaml
from mlxhog.base.quantities import Interval, split_host
from mlxhog.config.components import ADAPTERS, OPTIMIZERS, SCHEDULES, STRATEGIES, Component
from mlxhog.config.options import MAX_SEED, RESEARCH, option
from mlxhog.config.rules import parse_slowdowns
from mlxhog.config.sources import ConfigBase
from mlxhog.errors import did_you_mean

DEFAULT_TIME_S = 60.0
DEFAULT_MODEL = "minute"
DEFAULT_OPTIMIZER = "muon"
EMULATED = "metal-emulated"  # Metal source that runs on the CPU, of `gpu_write` and `kernels`

_data, _model, _workers, _strategy, _sparse, _optimizer, _schedule, _budget, _run, _safety = (
    partial(option, group=title)
    for title in ("data", "model", "workers", "strategy", "sparse", "optimizer", "schedule",
                  "budget", "run", "safety")
)  # fmt: skip
_research = partial(option, group=RESEARCH)
_tuning = partial(option, group="fine-tuning")
_ends = partial(option, group="epochs and early stopping")
_cluster = partial(option, group="cluster", requires={"cluster": ()})

TRACKERS = ("tensorboard", "wandb", "trackio")
"""What `report_to` may name, each by the name of its package."""

INITIAL_WEIGHTS = ("init_from", "resize_vocab", "embedding_init")
"""Options of the initial weights of a new run."""


def _check_address(text: str) -> None:
    host, port = "", None
    with suppress(ValueError):
        host, port = split_host(text)
    if port is None or ":" in host:
        raise ValueError(
            "wanted HOST:PORT as mlxhog cluster start prints it, a name or an IPv4 address, such "
            "as 192.168.1.5:8600"
        )


def trackers(text: str) -> tuple[str, ...]:
    """Return the names in the text of `report_to`."""
    names = tuple(dict.fromkeys(text.replace(",", " ").split()))
    if wrong := [name for name in names if name not in (*TRACKERS, "none")]:
        raise ValueError(f"wanted {', '.join(TRACKERS)}{did_you_mean(wrong[0], TRACKERS)}")
    if not names or ("none" in names and len(names) > 1):
        raise ValueError(f"wanted none, or some of {', '.join(TRACKERS)}")
    return () if names == ("none",) else names


@dataclass(frozen=True, kw_only=True, init=False)
class TrainOptions(ConfigBase):
    """Every option with its type, default and help; `TrainConfig` checks them together."""

    data: str = _data(
        "sotu",
        "the bundled corpus sotu, or text files, folders or globs, one or several",
        lines=True,
    )
    tokenizer: str = _data(
        "auto",
        "bytes, bpe:N (an N-token BPE trained on the text), sotu, or a tokenizer.json: "
        "docs/own-text.md",
    )
    text_key: str | None = _data(
        None, "field of a JSON line with the text; or those of prompt and completion, with a comma"
    )
    document_separator: str | None = _data(
        "auto",
        "text that separates documents, such as '\\n---\\n'; auto detects <|endoftext|> and "
        "similar tokens; none: files are whole documents",
    )
    strict_data: bool = _data(
        False, "fail on damaged, unreadable or empty files of a folder instead of skipping them"
    )
    skip_machine_data: bool = _data(
        False, "drop base64, hexadecimal digits, data: URIs and PEM blocks from the text"
    )
    val: str = _data(
        "hash", "validation split, if data has none: hash (of each document), or tail (of each)"
    )
    follow: str | None = _data(
        None,
        "online training: folder whose new files are trained on as they arrive; data is then the "
        "validation set only",
        none="off", is_path=True,
    )  # fmt: skip

    model: str = _model(
        "auto",
        "a name (mlxhog models lists them), a YAML or JSON file, or a line of layers such as "
        "'mlstm swiglu'; auto: that of init_from or resume, else minute",
        aliases=("size",),
    )
    set: str | None = _model(
        None, "override a field of the model, such as hidden_size=256; repeat for more",
        repeats=True, reads=plain_yaml.assignments,
    )  # fmt: skip
    plugin: str | None = _model(
        None,
        "Python file that adds layers, tasks, schedules, optimizers or strategies; several with "
        "commas; a file named only in YAML runs only if you passed this exact version with "
        "--plugin before",
        commas=True,
    )
    embedding_init: str = _model(
        "auto",
        "initial embedding and output head; bigrams: from bigram statistics of the text; auto: "
        "bigrams for untied vocabularies of 512 or more",
        choices=("auto", "bigrams", "random"),
    )
    seq_len: int = _model(
        256, "training sequence length", unit="tokens", low=1, aliases=("max_seq_length",)
    )
    batch_size: int | None = _model(
        4, "micro-batch size per worker, in sequences; auto: measured before training",
        low=1, none="auto",
    )  # fmt: skip
    grad_accumulation: int = _model(
        1, "micro-batches per optimizer step", low=1, aliases=("grad_accumulation_steps",)
    )
    recompute: str = _model(
        "auto",
        "activation recomputation; blocks: the backward pass computes each residual block again, "
        "with the same gradients; auto: if memory requires it; --grad-checkpoint is blocks",
        choices=("auto", "none", "blocks"), aliases=("grad_checkpoint",), on="blocks",
    )  # fmt: skip
    kernels: str = _model(
        "auto", "kernel implementation; auto: fastest on this machine",
        choices=("auto", "eager", "native", "metal", EMULATED),
    )  # fmt: skip
    dtype: str = _model(
        "auto",
        "dtype of matmuls and activations of a gradient (mixed precision); parameters, gates, "
        "norms, states and loss stay float32; auto: bfloat16 where a CPU is faster in it",
        choices=("auto", "float32", "bfloat16"),
    )

    workers: str = _workers("auto", "a number, or backends such as mlx:gpu,torch:cpu*3")
    threads: int | None = _workers(
        None, "threads per worker; auto divides the cores", low=1, none="auto"
    )
    max_workers: int | None = _workers(
        None,
        "maximum number of workers; auto leaves two free slots for mlxhog join (collect, hogwild)",
        low=1, high=4096, none="auto",
    )  # fmt: skip
    memory_limit: float = _workers(
        0.8, "fraction of this machine's memory that a run may use", above=0, high=1
    )
    inject_stragglers: str | None = _research(
        None,
        "simulate stragglers, by rank: 1=2 doubles the time of every gradient of worker 1, "
        "1=random:0.2:3 triples it with probability 0.2, 1=late:10 starts it 10 s later",
        reads=parse_slowdowns,
    )

    strategy: Component | None = _strategy(
        "auto",
        "training strategy; auto: serial for one worker, else hogwild or sync by measurement: "
        "docs/parallel-training.md",
        registry=STRATEGIES, none="auto",
    )  # fmt: skip
    read: str = _research(
        "snapshot",
        "whether a worker computes on a private snapshot or directly on the shared parameters",
        choices=("snapshot", "live"),
    )
    overlap: bool = _research(
        False, "apply each update while the worker's next gradient is computed; hogwild only"
    )
    write: str = _research(
        "auto",
        "how CPU workers apply updates: lossless (striped locks), racy (plain adds, some can "
        "be lost), cas (compare-and-swap); auto: lossless, or cas with Metal kernels",
        choices=("auto", "lossless", "racy", "cas"),
    )
    gpu_write: str = _research(
        "cpu",
        "how updates of GPU workers are applied: by the CPU, by Metal kernels in place, as doctor "
        "found safe, or by emulated Metal kernels on the CPU",
        choices=("cpu", "metal", "auto", EMULATED),
    )
    determinism: str = _research(
        "none",
        "rounds: only deterministic options; record: lock-free, with a log from which mlxhog "
        "replay repeats the run bit for bit",
        choices=("none", "rounds", "record", "replay"),
    )
    safety_checks: bool = _research(
        True, "require what mlxhog doctor found for Metal kernels, live reads and recording"
    )

    sampled_softmax: int | None = _sparse(
        None,
        "sampled softmax: negatives per batch; 0: full softmax; auto: 1,024 for vocabularies "
        "of 4,096 or more if the head has a third of the parameters",
        low=0, none="auto",
    )  # fmt: skip

    optimizer: Component | None = _optimizer(
        "auto", "optimizer; auto: muon, or that of the resumed run",
        registry=OPTIMIZERS, none="auto",
    )  # fmt: skip
    lr: float | None = _optimizer(
        None,
        "peak learning rate; auto: the optimizer's default, scaled by width, vocabulary and "
        "strategy, and by 5 for an adapter",
        above=0, aliases=("learning_rate",), none="auto",
    )  # fmt: skip
    ngram_lr: float = _optimizer(
        0.03, "learning rate of the n-gram embedding tables, with the schedule of lr", above=0
    )
    clip: float = _optimizer(
        0.5, "clip the gradient norm to this value; 0 disables clipping", low=0
    )

    schedule: Component = _schedule(
        "cosine", "learning-rate schedule (wsd: warmup, stable, decay)", registry=SCHEDULES
    )

    steps: int | None = _budget(
        None, "stop after this many steps", unit="steps", low=1, aliases=("iters",)
    )
    tokens: int | None = _budget(None, "stop after this many tokens", unit="tokens", low=1)
    time: float | None = _budget(
        None, "stop after this time; 60 s without any budget; the first budget reached counts",
        unit="s", above=0,
    )  # fmt: skip

    eval_every: Interval = _run(
        Interval(seconds=10),
        "steps or time between evaluations; if time, they take at most 5 % of the run",
        aliases=("steps_per_eval",),
    )
    val_subset_tokens: int | None = _run(
        None, "size of the fixed validation subset; auto: 64 KiB, less for a slow model",
        unit="tokens", low=1, none="auto", requires={"eval_every": ()},
    )  # fmt: skip
    sample_every: Interval = _run(Interval(seconds=30), "steps or time between samples of text")
    save_every: Interval = _run(
        Interval(seconds=300), "steps or time between checkpoints; one is always saved at the end"
    )
    keep_last: int = _run(3, "number of newest checkpoints to keep", low=1)
    live: str = _run(
        "auto",
        "publish snapshots of the weights so that other processes can read the model while it "
        "trains; auto: if memory allows",
        choices=("auto", "on", "off"),
    )  # fmt: skip
    live_every: Interval = _run(
        Interval(seconds=1), "steps or time between published snapshots, while there are readers",
        requires={"live": ("auto", "on")},
    )  # fmt: skip
    resume: str | None = _run(
        None, "continue a run: a path, its name, latest, NAME/best, or one of its checkpoints"
    )
    reset_optimizer: bool = _run(
        False,
        "reset the optimizer state, for example of another optimizer",
        requires={"resume": ()},
    )
    report_to: str = _run(
        "none", "also log metrics to " + ", ".join(TRACKERS) + "; several with commas; no login",
        lines=True, reads=lambda text: trackers(text),
    )  # fmt: skip
    keep_awake: bool = _run(True, "keep a Mac awake while the run trains (caffeinate -i)")
    seed: int = _run(0, "seed of initialization, data order and samples", low=0, high=MAX_SEED)
    runs_dir: str = _run("runs", "folder that holds the runs", is_path=True)
    name: str | None = _run(
        None, "run name, after the timestamp; default: the corpus", aliases=("run", "project_name")
    )

    restarts: int = _safety(5, "restarts of one worker in ten minutes before the run ends", low=0)
    heartbeat_timeout: float = _safety(
        60.0, "restart a worker without a heartbeat for this long", unit="s", above=0
    )

    init_from: str | None = _tuning(
        None,
        "initialize the weights, and nothing else, from a checkpoint: its path, a run, latest, a "
        "directory of transformers, or hf:OWNER/NAME on the Hugging Face hub",
    )
    resize_vocab: bool = _tuning(
        False, "allow another vocabulary; embeddings of tokens with the same text are kept",
        requires={"init_from": ()},
    )  # fmt: skip
    adapter: Component | None = _tuning(
        None,
        "train an adapter beside frozen weights, such as lora or lora(rank=16): docs/fine-tune.md",
        registry=ADAPTERS,
    )
    base_weights: str = _tuning(
        "keep",
        "dtype of the frozen weights, which all workers share; keep: that of the checkpoint",
        choices=("keep", "float32", "bfloat16", "8bit", "4bit"),
    )  # fmt: skip
    loss_on: str = _tuning(
        "assistant",
        "compute the loss on completions only (the answers of conversations), or on all tokens",
        choices=("assistant", "all"),
    )
    context: str = _tuning(
        "frozen",
        "frozen: stop the gradient at the prompt's state; trained: backpropagate into it; the "
        "loss never counts the prompt",
        choices=("frozen", "trained"),
    )
    epochs: int | None = _ends(None, "stop after this number of epochs", unit="epochs", low=1)
    patience: int | None = _ends(
        None, "early stopping: stop after this number of evaluations without improvement",
        unit="evaluations", low=1, none="off", requires={"eval_every": ()},
    )  # fmt: skip
    stop_at_loss: float | None = _ends(
        None, "stop when an evaluation reaches this number of bits per byte",
        unit="bits per byte", above=0, none="off", requires={"eval_every": ()},
    )  # fmt: skip
    keep_best: bool | None = _ends(
        None, "keep the checkpoint of the best validation score as checkpoints/best; auto: if the "
        "run is evaluated",
        none="auto", requires={"eval_every": ()},
    )  # fmt: skip

    # Rounds between machines. DiLoCo's outer momentum of .9 averages over ten rounds, too many
    # for runs of minutes: runs of three end .07 bits per byte higher
    # (`benchmarks/across_machines.py --only rounds`).
    cluster: str | None = _cluster(
        None, "train one model with other machines: HOST:PORT that mlxhog cluster start printed",
        none="off", reads=_check_address, requires={},
    )  # fmt: skip
    cluster_own_address: str | None = _cluster(
        None, "address of this machine for the others; auto: that of the route to the lighthouse",
        none="auto",
    )  # fmt: skip
    cluster_machine: str | None = _cluster(
        None, "name of this machine in reports; auto: its host name", none="auto"
    )
    cluster_token: str | None = _cluster(
        None, "the secret that mlxhog cluster start printed; auto: that of MLXHOG_CLUSTER_TOKEN",
        none="auto",
    )  # fmt: skip
    round_every: float = _cluster(10.0, "time between two rounds", unit="s", above=0)
    round_dtype: str = _cluster(
        "float32", "dtype on the wire; bfloat16 halves the traffic", choices=("float32", "bfloat16")
    )
    cluster_outer_lr: float = _cluster(0.7, "learning rate of the outer step", above=0)
    cluster_outer_momentum: float = _cluster(
        0.7, "Nesterov momentum of the outer step", low=0, below=1
    )
    cluster_timeout: float | None = _cluster(
        None,
        "timeout of each join, transfer and average; auto: six times round_every, at least 60 s",
        none="auto", unit="s", above=0,
    )  # fmt: skip
