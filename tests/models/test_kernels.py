"""The ops are chosen in one place, by kind and device."""

import pytest

from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.models.ops.kernels import CHOICES, choose, resolve
from mlxhog.models.ops.operators import Ops
from mlxhog.models.ops.reference import ops_mlx, ops_torch
from tests.pairs import each_of

OPS = [name for name in vars(Ops) if not name.startswith("_")]


def test_reference_is_the_plain_operators_of_the_framework():
    assert choose("torch", "reference", "cpu") is ops_torch.OPS
    assert choose("mlx", "reference", "cpu") is ops_mlx.OPS


@each_of("framework", ["torch", "mlx"])
@each_of("kernels", ["reference", "native", "metal-emulated"])
def test_ops_are_guarded_only_where_they_are_asked_to_be(framework, kernels):
    guarded = choose(framework, kernels, "cpu", guarded=True)
    assert guarded.form.guarded
    assert guarded is choose(framework, kernels, "cpu", guarded=True)
    assert not choose(framework, kernels, "cpu").form.guarded


def test_auto_is_the_reference_on_a_device_that_is_not_a_cpu():
    assert choose("torch", "auto", "mps") is ops_torch.OPS
    assert choose("mlx", "auto", "gpu") is ops_mlx.OPS


def test_native_is_refused_on_a_device_that_is_not_a_cpu():
    with pytest.raises(ConfigError, match="'native', which mlx:gpu cannot run; use auto"):
        choose("mlx", "native", "gpu")


def test_metal_is_refused_where_there_is_no_apple_gpu():
    with pytest.raises(ConfigError, match="'metal', which torch:cpu cannot run; use auto"):
        choose("torch", "metal", "cpu")


def test_emulated_metal_is_refused_on_a_gpu():
    with pytest.raises(ConfigError, match="'metal-emulated', which mlx:gpu cannot run; use auto"):
        choose("mlx", "metal-emulated", "gpu")


@pytest.mark.parametrize(("framework", "device"), [("mlx", "gpu"), ("torch", "mps")])
def test_auto_is_metal_on_a_gpu_where_the_kernels_are_verified(framework, device):
    assert resolve(framework, "auto", device, metal_verified=True) == "metal"
    assert resolve(framework, "auto", device) == "reference"
    assert resolve(framework, "reference", device, metal_verified=True) == "reference"
    assert resolve(framework, "auto", "cpu", metal_verified=True) != "metal"


@pytest.mark.parametrize(
    ("framework", "engine"), [("mlx", "emulated:mlx"), ("torch", "emulated:mps")]
)
def test_emulated_metal_runs_what_that_framework_would_compile(framework, engine):
    assert choose(framework, "metal-emulated", "cpu").form.engine.name == engine


def test_the_option_offers_every_choice():
    assert options(TrainConfig)["kernels"].choices == CHOICES


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'fast'; choose one of auto, reference, native"):
        choose("torch", "fast", "cpu")


@each_of("name", OPS)
def test_every_form_computes_every_op(name):
    for framework in ("torch", "mlx"):
        for kernels in ("reference", "auto", "metal-emulated"):
            assert callable(getattr(choose(framework, kernels, "cpu").form, name))
