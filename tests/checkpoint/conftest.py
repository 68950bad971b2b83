"""A run, and checkpoints of one small model."""

import numpy as np
import pytest

from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint import run as runs
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.models.families import init_params
from mlxhog.models.xlstm_large import XLSTMLargeConfig


def model_of(hidden_size):
    return XLSTMLargeConfig(
        vocab_size=320, hidden_size=hidden_size, num_hidden_layers=2, num_heads=2, chunk_size=16
    )


MODEL = model_of(64)
CONFIG, PARAMS = MODEL.to_dict(), init_params(MODEL, seed=0)
STATE = {"tokens": 123, "data": {"epoch": 0, "watermark": 4, "done": [6, 7], "torn": 0}}


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path / "runs", "test")


def save(run, step=1000, **changed):
    arguments = {
        "params": PARAMS,
        "model_config": CONFIG,
        "optimizer": {
            "m.1": np.arange(1000, dtype=np.float32),
            "steps": np.array([3, 4], np.uint64),
            "scalar": np.array(2.5, np.float32),
        },
        "state": STATE,
        "tokenizer": ByteTokenizer(),
    }
    return checkpoint.save(run, step=step, **(arguments | changed))


def names(run):
    return sorted(path.name for path in run.checkpoints.iterdir())
