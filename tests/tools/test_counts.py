"""What a step costs on a Mac follows from source and shapes; what MLX dispatches may not rise."""

import json
import re
from pathlib import Path

import mlx.core as mx
import pytest

from tools import counts

PAGE = Path(__file__).parents[2] / "docs/apple.md"


def test_a_gpu_that_orthogonalises_waits_for_the_cpu_for_at_most_a_fifth_of_a_step():
    gflop = {name: round(counts.muon_gflop(name)) for name in counts.MODELS}
    assert gflop == {"10m": 24, "30m": 111, "60m": 286, "160m": 493}
    assert all(counts.cpu_share(name, None) <= 0.2 for name in counts.MODELS)
    products = (*counts.CPU_GFLOP_S, None)
    shares = [f"{100 * counts.cpu_share('10m', product):.0f} %" for product in products]
    (line,) = [line for line in PAGE.read_text().splitlines() if "`python -m tools.counts`" in line]
    assert re.findall(r"\d+ %", line) == shares, "python -m tools.counts"


@pytest.mark.slow
def test_no_step_and_no_block_dispatches_more_than_recorded():
    """After a change that is worth more: python -m tools.counts graphs."""
    recorded, now = json.loads(counts.RECORD.read_text()), counts.graphs()
    assert now.keys() == recorded.keys()
    assert {name: n for name, n in now.items() if n > recorded[name]} == {}
    assert now["160m"] <= 1500


def test_a_norm_of_a_gpu_is_one_node_its_gradient_another_and_that_of_its_scale_a_third():
    x, w = mx.ones((2, 3, 4)), mx.ones(4)
    mx.eval(x, w)

    def nodes(norm, n):
        with mx.stream(mx.cpu):
            grads, normed = mx.vjp(norm, [x, w], [x])[1], norm(x, w)
        return counts.dispatched([normed]), counts.dispatched(grads[:n])

    def scaled():
        return nodes(lambda x, w: mx.fast.rms_norm(x, w, 1e-6), 2)

    of_mlx, on_a_cpu = mx.fast.rms_norm, scaled()
    with counts.norms_of_a_gpu():
        plain = nodes(lambda x, w: mx.fast.layer_norm(x, None, None, 1e-6), 1)
        assert (scaled(), plain) == ((1, 2), (1, 1))
    assert mx.fast.rms_norm is of_mlx
    assert min(on_a_cpu) > 2
