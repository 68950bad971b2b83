"""MLX says itself what it compiles; our statement of its rules says the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog.errors import MetalError
from mlxhog.metal.host import mlx_text
from mlxhog.metal.host.mlx_text import TextRequest
from mlxhog.metal.registry import KERNELS
from tests.metal.host import probes
from tests.pairs import each_of

ALL_ATTRIBUTES = """
    uint3 a = thread_position_in_grid + thread_position_in_threadgroup + threads_per_grid
        + threadgroup_position_in_grid + threadgroups_per_grid + dispatch_threads_per_threadgroup;
    uint b = thread_index_in_threadgroup + thread_index_in_simdgroup + simdgroups_per_threadgroup
        + simdgroup_index_in_threadgroup + threads_per_simdgroup + quadgroups_per_threadgroup;
"""
SHAPES = TextRequest(
    name="shapes",
    inputs=(("x", "float32", (2, 4)), ("small", "int32", (7,)), ("one", "uint8", ())),
    outputs=(("out", "float32"),),
    source="out[0] = x_shape[0] + x_strides[1] + x_ndim + small_ndim + small_shape[0];",
    header="// a header\n",
)
EDGES = {
    "shapes, strides and numbers of dimensions where the body names them": SHAPES,
    "seven elements are constant": replace(SHAPES, inputs=(("x", "float32", (7,)),)),
    "eight elements are not": replace(SHAPES, inputs=(("x", "float32", (8,)),)),
    "a number is a reference": replace(SHAPES, inputs=(("x", "float32", ()),)),
    "an empty dimension makes a small array": replace(SHAPES, inputs=(("x", "int32", (3, 0)),)),
    "atomic outputs": replace(SHAPES, atomic_outputs=True, outputs=(("out", "uint32"),)),
    "attributes": replace(SHAPES, source=ALL_ATTRIBUTES),
    "a word in a comment counts": replace(SHAPES, source="// thread_position_in_grid, x_ndim\n"),
    "two template arguments": replace(SHAPES, template=(("T", "float16"), ("U", "bfloat16"))),
}


def words(text: str) -> list[str]:
    return text.split()


@pytest.fixture(scope="module")
def captured(shim_cache: Path) -> dict[str, str]:
    requests = list(EDGES.values())
    return dict(zip(EDGES, mlx_text.captured(requests, shim_cache), strict=True))


@each_of("edge", EDGES)
def test_our_wrapper_follows_mlx_rule_by_rule(captured: dict[str, str], edge: str):
    assert words(mlx_text.stated(EDGES[edge])) == words(captured[edge])


def test_our_wrapper_equals_that_of_mlx_for_every_kernel(shim_cache: Path):
    requests = [
        mlx_text.request_of(kernel, instance)
        for kernel in KERNELS.values()
        for instance in kernel.instances or ("",)
    ]
    for expected, text in zip(requests, mlx_text.captured(requests, shim_cache), strict=True):
        assert words(mlx_text.stated(expected)) == words(text), expected.name


def test_a_captured_text_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = mlx_text.request_of(probes.GROUP_SUM)
    first = mlx_text.captured([expected, expected], tmp_path)
    monkeypatch.setattr(mlx_text, "_ask", lambda _: pytest.fail("asked again"))
    assert mlx_text.captured([expected], tmp_path) * 2 == first


def test_what_mlx_refuses_is_an_error_with_its_words(tmp_path: Path):
    wrong = replace(SHAPES, outputs=())
    with pytest.raises(MetalError, match="MLX gave no text for shapes"):
        mlx_text.captured([wrong], tmp_path)


def test_without_mlx_our_own_wrapper_runs(host_engine, monkeypatch: pytest.MonkeyPatch):
    import numpy as np

    monkeypatch.setattr(mlx_text, "mlx_version", lambda: "")
    monkeypatch.setattr(mlx_text, "captured", lambda *_: pytest.fail("there is no MLX"))
    x = np.ones(64, np.float32)
    assert (host_engine("mlx").run(probes.on(probes.GROUP_SUM, x))["y"] == 64).all()


def test_modules_where_the_user_stands_are_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "json.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    (text,) = mlx_text.captured([SHAPES], tmp_path)
    assert "custom_kernel_shapes" in text
