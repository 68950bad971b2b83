"""What MLX dispatches is recorded, and a change may not raise it unnoticed."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest

from mlxhog.models.registry import load_architecture
from tools import mlx_graph


@pytest.mark.slow
def test_no_step_and_no_block_dispatches_more_than_recorded() -> None:
    """After a change that is worth more: python -m tools.mlx_graph."""
    recorded = json.loads(mlx_graph.RECORD.read_text())
    now = mlx_graph.counted()
    assert mlx_graph.raised(now, recorded) == []
    assert now.keys() == recorded.keys()


@pytest.mark.slow
def test_a_step_of_160m_dispatches_at_most_1500_nodes() -> None:
    assert mlx_graph.step_nodes(load_architecture("160m"), batch=2, seq=256) <= 1500


def test_a_larger_number_and_a_new_one_are_noticed_and_a_smaller_one_is_not() -> None:
    recorded = {"tiny": 10, "10m": 20}
    assert mlx_graph.raised({"tiny": 9, "10m": 20}, recorded) == []
    assert mlx_graph.raised({"tiny": 11, "new": 1}, recorded) == [
        "tiny: 11 dispatched nodes, 10 recorded",
        "new: 1 dispatched nodes, none recorded",
    ]


def test_a_norm_of_a_gpu_is_one_node_its_gradient_another_and_that_of_its_scale_a_third() -> None:
    x, w = mx.ones((2, 3, 4)), mx.ones(4)
    mx.eval(x, w)

    def nodes(scaled: bool) -> tuple[int, int]:
        def norm(x: mx.array, w: mx.array) -> mx.array:
            if scaled:
                return mx.fast.rms_norm(x, w, 1e-6)
            return mx.fast.layer_norm(x, None, None, 1e-6)

        with mx.stream(mx.cpu):
            grads, normed = mx.vjp(norm, [x, w], [x])[1], norm(x, w)
        return mlx_graph.dispatched([normed]), mlx_graph.dispatched(grads[: 1 + scaled])

    of_mlx = mx.fast.rms_norm
    on_a_cpu = nodes(True)
    with mlx_graph.norms_of_a_gpu():
        assert (nodes(True), nodes(False)) == ((1, 2), (1, 1))
    assert mx.fast.rms_norm is of_mlx
    assert min(on_a_cpu) > 2
