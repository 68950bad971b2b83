"""The ops are chosen in one place, by kind and device."""

import inspect

import pytest

from mlxhog.errors import ConfigError
from mlxhog.models import ops_mlx, ops_torch
from mlxhog.models.kernels import Ops, choose

OPS = [name for name in vars(Ops) if not name.startswith("_")]


def test_reference_is_the_plain_module_of_the_framework() -> None:
    assert choose("torch", "reference", "cpu") is ops_torch
    assert choose("mlx", "reference", "cpu") is ops_mlx


def test_auto_is_the_reference_on_a_device_that_is_not_a_cpu() -> None:
    assert choose("torch", "auto", "mps") is ops_torch
    assert choose("mlx", "auto", "gpu") is ops_mlx


def test_native_is_refused_on_a_device_that_is_not_a_cpu() -> None:
    with pytest.raises(ConfigError, match="kernels is 'native' on mlx:gpu; set it to auto there"):
        choose("mlx", "native", "gpu")


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'fast'; choose one of auto, reference, native"):
        choose("torch", "fast", "cpu")


@pytest.mark.parametrize("name", OPS)
def test_every_module_offers_every_op_with_the_same_arguments(name: str) -> None:
    wanted = [p for p in inspect.signature(getattr(Ops, name)).parameters if p != "self"]
    for framework in ("torch", "mlx"):
        for kernels in ("reference", "auto"):
            op = getattr(choose(framework, kernels, "cpu"), name)
            assert list(inspect.signature(op).parameters) == wanted
