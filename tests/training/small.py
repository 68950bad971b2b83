"""A run small enough for a test: one block of width 32, 30 KB of text, a second or two."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mlxhog import TrainConfig
from mlxhog.arena import Arena, clock
from mlxhog.arena.ledger import Ledger
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.config.options import options
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.supervisor.arena_state import load
from mlxhog.training.supervisor.handles import WorkerHandle
from mlxhog.training.supervisor.session import Session

SMALL_MODEL = """
model_type: xlstm
vocab_size: 320
hidden_size: 32
num_hidden_layers: 1
num_heads: 2
chunk_size: 16
bos_token_id: 256
"""

MIXED_MODEL = """
model_type: xlstm_v1
vocab_size: 320
embedding_dim: 32
num_blocks: 2
slstm_at: [1]
mlstm_block: {mlstm: {num_heads: 2}}
slstm_block: {slstm: {num_heads: 2}}
context_length: 32
chunk_size: 16
dropout: 0.1
reset_at_document_boundaries: true
bos_token_id: 256
"""


def sample_prompt(result):
    """The beginning of the samples of a run."""
    return Run(Path(result.run)).sample_prompt()


def mixed_model(tmp_path):
    """The path of an architecture with an mLSTM and an sLSTM block, dropout and resets."""
    path = tmp_path / "mixed.yaml"
    path.write_text(MIXED_MODEL)
    return str(path)


def let_no_worker_finish(monkeypatch):
    """Let the runs of a test end while each worker is within a step, as far as they can see."""
    monkeypatch.setattr(clock, "GRACE_S", 0.2)
    monkeypatch.setattr(clock, "FIRST_STEP_S", 0.5)
    monkeypatch.setattr(Session, "is_drained", lambda self: False)
    monkeypatch.setattr(WorkerHandle, "is_idle", False)


def lasts_until(monkeypatch, condition):
    """Let no training end by its budget before a condition holds, however late it looks."""
    is_used = Session.budget_is_used
    monkeypatch.setattr(Session, "budget_is_used", lambda run: condition() and is_used(run))


def small_config(tmp_path, **options):
    """A configuration whose run takes a second or two, in its own folders."""
    model = tmp_path / "small.yaml"
    model.write_text(SMALL_MODEL)
    text = tmp_path / "text"
    if not text.exists():
        text.mkdir()
        words = np.random.default_rng(0).choice(["lock", "free", "adds", "never", "wait"], 8000)
        for k in range(12):
            (text / f"{k:02}.txt").write_text(" ".join(words[k * 500 : k * 500 + 600]))
    defaults = {
        "model": str(model),
        "data": str(text),
        "seq_len": 32,
        "batch_size": 2,
        "optimizer": "adamw",
        "lr": 1e-3,
        "strategy": "hogwild",
        "workers": "mlx:cpu",
        "threads": 1,
        "dtype": "float32",  # the same to rounding on every processor
        "runs_dir": str(tmp_path / "runs"),
        "eval_every": "off",
        "sample_every": "off",
        "save_every": "off",
        "steps": 20,
    }
    values = {**defaults, **options}
    if values["eval_every"] != "off":
        values.setdefault("val_subset_tokens", 1024)
    return TrainConfig(**values)


def flags(config):
    return [
        "=".join(spec.argv([str(spec.to_yaml_value(getattr(config, name)))]))
        for name, spec in options(TrainConfig).items()
        if getattr(config, name) != spec.default
    ]


def checkpoint_of(result):
    return checkpoint.load(Path(str(result.checkpoint)))


def tickets(state):
    """Number of batches that the ledger of a checkpoint counts."""
    ledger = state["ledger"]
    return ledger["epoch"] * ledger["n"] + ledger["watermark"] + len(ledger["done"])


def parameters(result):
    return {name: np.array(value) for name, value in checkpoint_of(result).params.items()}


@contextmanager
def filled(config):
    """The plan of a run, its arena as the run begins, and the messages on its state."""
    plan, messages = make_plan(config), []
    with Arena.create(plan.layout) as arena:
        load(plan, arena, Ledger(arena), messages.append)
        yield plan, arena, messages


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def identical(a, b):
    """Whether two sets of parameters are equal bit for bit."""
    return a.keys() == b.keys() and all(
        np.array_equal(a[name].view(np.uint32), b[name].view(np.uint32)) for name in a
    )


class Messages(list):
    """An observer that keeps a run's messages."""

    def __call__(self, progress):
        if progress.message is not None:
            self.append(progress.message)
