"""Runs with checkpoints of small models that nobody has trained."""

import numpy as np

from mlxhog.base import tensors
from mlxhog.checkpoint import checkpoint, new_run
from mlxhog.checkpoint.formats import peft
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.models.families import init_params
from mlxhog.models.xlstm_large import XLSTMLargeConfig

SMALL = XLSTMLargeConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_heads=2)


def saved_run(out, name="small", model=SMALL, params=None, *, step=0):
    """A new run of a folder with one checkpoint, of initial values unless there are parameters."""
    saved = new_run.create(out, name)
    save(saved, model, params, step=step)
    return saved


def save(saved, model=SMALL, params=None, *, step, **changed):
    """Save a checkpoint into a run, of initial values unless there are parameters."""
    how = {"optimizer": {}, "state": {}, "tokenizer": ByteTokenizer(), "step": step}
    params = init_params(model, seed=0) if params is None else params
    return checkpoint.save(saved, params=params, model=model, **how | changed)


def write_adapter(folder, model, arrays, base):
    """Write the two files of PEFT; `arrays` have the trained parameters of a model."""
    own, config = peft.content(model, arrays, base)
    tensors.write(folder / peft.MODEL, own)
    (folder / peft.CONFIG).write_bytes(config)


def names(run):
    """The checkpoints of a run, with `latest`."""
    return sorted(path.name for path in run.checkpoints.iterdir())


def letters(model=SMALL):
    """Parameters that know nine letters and newlines alone, one of each pair likely."""
    params = init_params(model, seed=0)
    head = np.zeros_like(params["lm_head.weight"])
    known = 30 * params["lm_head.weight"][:5]
    head[list(b"abcd\n")], head[list(b"efghi")] = known, -known
    return params | {"lm_head.weight": head}
