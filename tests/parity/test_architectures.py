"""Subjects and sides of a comparison: their limits, and the values that they are given."""

from pathlib import Path

import numpy as np
import pytest

from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.parity.subject import (
    check_memory,
    choose,
    open_subject,
    perturbed,
)

ROOT = Path(__file__).parents[2]


def test_the_published_model_is_refused_before_anything_is_drawn():
    source = open_subject("config", "7b", Path("runs"))
    chosen, _ = choose("numpy,torch:cpu", "auto")
    with pytest.raises(EnvironmentLacks, match=r"7b needs about \d+ GB in 2 processes"):
        check_memory(source, chosen)


def test_a_perturbed_parameter_differs_everywhere_and_by_its_own_size():
    inputs = {"w": np.full((50, 4), 100.0, np.float32), "zero": np.zeros(9, np.float32)}
    noise = perturbed(inputs, "w", 0) - inputs["w"]
    assert 5.0 < noise.std() < 20.0
    assert perturbed(inputs, "zero", 0).all()
    with pytest.raises(ConfigError, match="no parameter 'zer'; did you mean 'zero'"):
        perturbed(inputs, "zer", 0)


def test_who_computes_is_chosen_by_name():
    names = [side.name for side in choose("mlx:cpu,numpy,torch:cpu", "all")[0]]
    assert names == [
        "numpy", "torch:cpu", "torch:cpu+reference", "mlx:cpu", "mlx:cpu+reference",
    ]  # fmt: skip
    (only,), _ = choose("mlx:cpu", "reference")
    assert (only.name, only.kernels) == ("mlx:cpu+reference", "reference")
    with pytest.raises(ConfigError, match="no backend 'numpi'.*did you mean 'numpy'"):
        choose("numpi", "all")
