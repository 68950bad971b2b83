"""Small models whose gradients are sampled in the test's own process."""

from pathlib import Path

import numpy as np

from mlxhog.arena.child import Lane
from mlxhog.config.sources import of_keywords
from mlxhog.theory import AnalyzeConfig
from mlxhog.theory.analysis.analyze import plan_of, subject_of
from mlxhog.theory.analysis.sampling import sample
from mlxhog.theory.target import find_target
from tests.training.small import small_config

MAD_MODEL = """
{dim: 16, position: learned, max_length: 48, layers: [%s]}
"""


def subject(tmp_path, *, architecture=None, backend="mlx:cpu", **options):
    """Gradients of a small model on a text of five words, at its initial values."""
    config = small_config(tmp_path)
    spec = config.model
    if architecture is not None:
        spec = str(tmp_path / "architecture.yaml")
        Path(spec).write_text(architecture)
    options_by_name = {"data": config.data, "seq_len": 32, "batch_size": 2, **options}
    overrides = of_keywords("test", options_by_name)
    target = find_target(spec, overrides, tmp_path / "runs")
    return subject_of(target, plan_of(target, AnalyzeConfig(backend=backend)))


def sampled(small, tickets, lane=None):
    """Sample in this process."""
    return sample(Lane(None, 0) if lane is None else lane, small, tickets)


def touched(sampling, small, block):
    """Which elements of a block each update touches, (gradients, elements)."""
    number = [one.name for one in small.blocks].index(block)
    count = small.blocks[number].parameters
    bits = np.unpackbits(sampling.bits[number], axis=1, bitorder="little", count=count)
    return bits.astype(bool)


def touched_rows(sampling, small, block):
    """Which rows of a block of one matrix, (gradients, rows)."""
    (slot,) = next(one.slots for one in small.blocks if one.name == block)
    elements = touched(sampling, small, block)
    return elements.reshape(len(elements), slot.shape[0], -1).any(axis=2)
