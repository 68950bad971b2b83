"""The engines of both frameworks give kernels what they declare, and wait where they must.

The frameworks' Metal parts are stood in for (`fake_gpu.py`); the engines' own code is all real.
"""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.errors import EnvironmentLacks, MetalError, ShapeError
from mlxhog.metal import engine, engine_mlx
from mlxhog.metal.engine_mlx import MLXEngine
from mlxhog.metal.engine_torch import MPSEngine
from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernels import conv
from mlxhog.metal.kernels.adds import dense_axpy
from mlxhog.metal.registry import KERNELS

N = 100


def fakes(which, monkeypatch):
    """An engine over a stand-in of its framework, and the stand-in."""
    from tests.metal.fake_gpu import FakeMLX, FakeMPS

    if which == "mlx":
        return FakeMLX(KERNELS).install(monkeypatch), MLXEngine()
    return FakeMPS(KERNELS).install(monkeypatch), MPSEngine("cpu")


both = pytest.mark.parametrize("which", ["mlx", "mps"])


def floats(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32)


@both
@pytest.mark.parametrize("n", [1, 7, 8, 65])
def test_an_engine_adds_in_place(which, n, monkeypatch):
    _, fake_engine = fakes(which, monkeypatch)
    before, g = floats(N), floats(n, 1)
    arena = fake_engine.array(before.copy())
    outputs = fake_engine.run(dense_axpy(arena, fake_engine.array(g), scale=-0.5, offset=3))
    before[3 : 3 + n] += np.float32(-0.5) * g
    np.testing.assert_array_equal(fake_engine.host(arena), before)
    np.testing.assert_array_equal(fake_engine.host(outputs["done"]), [1])


@both
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_kernel_gets_its_arguments_from_an_engine(which, name, monkeypatch):
    _, fake_engine = fakes(which, monkeypatch)
    kernel = KERNELS[name]
    for instance in kernel.instances or ("",):
        launch = replace(kernel.sample(np.random.default_rng(0), 3000), instance=instance)
        copied = {a.name: np.array(launch.inputs[a.name]) for a in kernel.inputs}
        inputs = {
            a.name: copied[a.name].item() if a.scalar else fake_engine.array(copied[a.name])
            for a in kernel.inputs
        }
        outputs = fake_engine.run(replace(launch, inputs=inputs))
        expected = HostEngine(which).run(replace(launch, inputs=copied))
        for output, value in expected.items():
            assert_same(fake_engine.host(outputs[output]), value, kernel.rtol)
        for argument in kernel.inputs:
            if argument.writes:
                name = argument.name
                assert_same(fake_engine.host(inputs[name]), copied[name], kernel.rtol)


def assert_same(actual, expected, rtol):
    assert actual.dtype == expected.dtype
    actual = np.reshape(actual, expected.shape)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol)


def test_mlx_passes_scalars_as_arrays_and_fills_short_inputs_up(monkeypatch):
    fake, fake_engine = fakes("mlx", monkeypatch)
    arena = fake_engine.array(floats(N))
    fake_engine.run(dense_axpy(arena, fake_engine.array(floats(3)), scale=2, offset=5))
    _, g, scale, n, offset = fake.calls[0]["inputs"]
    assert g.tolist() == [*floats(3).tolist(), 0, 0, 0, 0, 0]
    assert (scale.shape, scale.dtype, scale.item()) == ((), mx.float32, 2.0)
    assert (n.dtype, n.item()) == (mx.uint32, 3)
    assert (offset.dtype, offset.item()) == (mx.uint32, 5)


def test_a_kernel_without_written_inputs_stays_lazy_and_takes_lazy_results(monkeypatch):
    _, fake_engine = fakes("mlx", monkeypatch)
    evaluated = []
    evaluate = mx.eval
    monkeypatch.setattr(
        "mlxhog.metal.engine_mlx.mx.eval", lambda *x: evaluated.append(x) or evaluate(*x)
    )
    sums = fake_engine.run(conv.FINAL.launch({"part": mx.full((1, 1, 2, 8), 4.0)}, S=1))["dbias"]
    scale = fake_engine.run(conv.FINAL.launch({"part": sums.reshape(1, 1, 8, 1)}, S=1))["dbias"]
    # the stand-in evaluates, the engine must not
    assert not [x for x in evaluated if isinstance(x[0], list)]
    arena = fake_engine.array(np.zeros(8, np.float32))
    fake_engine.run(dense_axpy(arena, mx.ones(8), scale=scale, offset=0))
    np.testing.assert_allclose(fake_engine.host(arena), 4.0, rtol=1e-6)


def test_an_in_place_kernel_inside_a_compiled_function_is_refused(monkeypatch):
    fake, fake_engine = fakes("mlx", monkeypatch)
    arena = fake_engine.array(floats(N))

    def step(g):
        return fake_engine.run(dense_axpy(arena, g, scale=1.0, offset=0))["done"]

    with pytest.raises(MetalError, match=r"cannot run inside mx\.compile"):
        mx.compile(step)(mx.ones(8))
    assert not fake.calls


def test_memory_that_would_be_copied_is_never_written(monkeypatch):
    fake, fake_engine = fakes("mlx", monkeypatch)
    every_other = mx.zeros(2 * N)[::2]
    with pytest.raises(MetalError, match="copy of arena.*whole flat array"):
        fake_engine.run(dense_axpy(every_other, mx.ones(8), scale=1.0, offset=0))
    _, mps = fakes("mps", monkeypatch)
    with pytest.raises(ShapeError, match="arena is a Tensor.*row-major"):
        mps.run(dense_axpy(torch.zeros(2 * N)[::2], torch.ones(8), scale=1.0, offset=0))
    assert not fake.calls


@both
def test_a_group_that_the_compiled_kernel_is_too_large_for_is_told_with_the_way_out(
    which, monkeypatch
):
    fake, fake_engine = fakes(which, monkeypatch)
    fake.most_threads = 64
    with pytest.raises(MetalError, match=r"dense_axpy .*100 x 1 x 1 .*64.*use --kernels"):
        fake_engine.run(
            dense_axpy(
                fake_engine.array(floats(N)), fake_engine.array(floats(N)), scale=1.0, offset=0
            )
        )


def test_memory_that_torch_does_not_take_from_mlx_is_lacking(monkeypatch):
    mlx, _ = fakes("mlx", monkeypatch)
    _, fake_engine = fakes("mps", monkeypatch)

    def refuse(*_):
        raise BufferError("Unsupported device type for DLPack")

    monkeypatch.setattr(torch, "from_dlpack", refuse)
    with pytest.raises(EnvironmentLacks, match=r"Unsupported device.*--gpu-write cpu"):
        fake_engine.adopt(mlx.memory(N))


@both
def test_a_launch_without_threads_runs_nothing_and_gives_zeros(which, monkeypatch):
    fake, fake_engine = fakes(which, monkeypatch)
    g = fake_engine.array(np.zeros(0, np.float32))
    outputs = fake_engine.run(dense_axpy(fake_engine.array(floats(N)), g, scale=1.0, offset=0))
    np.testing.assert_array_equal(fake_engine.host(outputs["done"]), [0])
    assert not fake.calls


def bad_launches(result):
    good = dense_axpy(result.array(floats(N)), result.array(floats(9)), scale=1.0, offset=0)

    def given(**changed):
        return replace(good, inputs={**good.inputs, **changed})

    return {
        "dtype": given(g=result.array(np.zeros(9, np.int32))),
        "numpy": given(g=np.zeros(9, np.float32)),
        "scalar": given(scale=result.array(floats(9))),
        "text": given(scale="one"),
        "missing": replace(good, inputs={"arena": good.inputs["arena"]}),
        "output": replace(good, outputs={}),
        "instance": replace(good, instance="half"),
    }


@both
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("dtype", "g is of int32; expected a row-major .* array of float32"),
        ("numpy", "g is a ndarray elsewhere"),
        ("scalar", "scale is an array of shape .9,.; expected one number"),
        ("text", "scale is 'one'; expected one number"),
        ("missing", "got arena; expected arena, g, scale, n, offset"),
        ("output", "got nothing; expected done"),
        ("instance", "no instance 'half'; expected one of ''"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_before_anything_runs(
    which, case, message, monkeypatch
):
    fake, fake_engine = fakes(which, monkeypatch)
    with pytest.raises(ShapeError, match=message.replace("(", r"\(")):
        fake_engine.run(bad_launches(fake_engine)[case])
    assert not fake.calls


@both
def test_a_kernel_that_does_not_compile_is_named_with_the_compilers_words(which, monkeypatch):
    fake, fake_engine = fakes(which, monkeypatch)
    fake.breaks = "program_source:7:3: error: use of undeclared identifier 'arenna'"
    launch = dense_axpy(
        fake_engine.array(floats(N)), fake_engine.array(floats(9)), scale=1.0, offset=0
    )
    with pytest.raises(MetalError, match=r"kernel dense_axpy failed: .*'arenna'"):
        fake_engine.run(launch)


def test_mps_adopts_what_mlx_lends_it(monkeypatch):
    from tests.metal.fake_gpu import FakeMLX

    lender = FakeMLX(KERNELS).install(monkeypatch)
    _, fake_engine = fakes("mps", monkeypatch)
    host = lender.memory(N)
    adopted = fake_engine.adopt(host)
    fake_engine.run(dense_axpy(adopted, torch.ones(8), scale=1.0, offset=5))
    assert host[4:7].tolist() == [0, 1, 1]
    far = MPSEngine("meta")
    with pytest.raises(EnvironmentLacks, match="on cpu, kernels need meta"):
        far.adopt(host)


@both
def test_memory_that_cannot_be_adopted_is_refused_with_the_way_out(which, monkeypatch):
    _, fake_engine = fakes(which, monkeypatch)
    with pytest.raises(EnvironmentLacks, match="without a copy.*--gpu-write cpu"):
        fake_engine.adopt(np.zeros(4096, np.float32))


def test_what_mlx_gives_instead_of_an_import_is_refused(monkeypatch):
    """As hosted runners do: a buffer of length 0, or one elsewhere, and no error."""
    fake, fake_engine = fakes("mlx", monkeypatch)
    host = fake.memory(4096)
    for instead in (mx.zeros(0), mx.zeros(4096), fake.lent[host.ctypes.data][:2048]):
        mx.eval(instead)
        fake.lent[host.ctypes.data] = instead
        with pytest.raises(EnvironmentLacks, match="it did not import them.*--gpu-write cpu"):
            fake_engine.adopt(host)


def test_an_mlx_that_may_donate_adopted_memory_is_refused(monkeypatch, tmp_path):
    assert engine_mlx.refuses_donation()
    engine_mlx.refuses_donation.cache_clear()
    header = tmp_path / "include" / "mlx" / "array.h"
    header.parent.mkdir(parents=True)
    header.write_text("bool is_donatable() const { return array_desc_.use_count() == 1; }")
    try:
        monkeypatch.setattr(engine_mlx.mx, "__file__", str(tmp_path / "core.so"))
        with pytest.raises(EnvironmentLacks, match="is_owned is missing.*mlx>=0.32.4"):
            engine_mlx.adopt(np.zeros(4096, np.float32))
    finally:
        engine_mlx.refuses_donation.cache_clear()


@pytest.mark.usefixtures("no_apple_gpu")
def test_without_an_apple_gpu_an_engine_says_what_to_use_instead():
    for name in ("mlx", "mps"):
        with pytest.raises(EnvironmentLacks, match="Apple GPU.*--gpu-write cpu"):
            engine.create(name)
