"""The prediction of update speeds is arithmetic on what kernels move and what Apple publishes."""

import subprocess
import sys

import pytest

from mlxhog.metal.registry import KERNELS
from mlxhog.models.registry import load_architecture
from mlxhog.models.xlstm_large import XLSTMLargeConfig, param_count
from tools import roofline


def test_twice_the_bandwidth_is_twice_the_speed_and_half_the_time():
    slow, fast = (
        roofline.elements_per_s("adam_apply", "M1 Pro"),
        roofline.elements_per_s("adam_apply", "M1 Max"),
    )
    assert fast == 2 * slow
    n = roofline.PARAMETERS["160m"]
    assert roofline.update_ms("adam_apply", "M1 Pro", n) == pytest.approx(1e3 * n / slow)


def test_an_adam_step_is_slower_than_a_plain_add_by_the_bytes_it_moves():
    ratio = roofline.elements_per_s("dense_axpy", "M4") / roofline.elements_per_s(
        "adam_apply", "M4"
    )
    assert ratio == KERNELS["adam_apply"].bytes_per_element / 12


def test_the_sizes_are_those_of_the_models():
    published = {"vocab_size": 50_304, "num_heads": 4}
    counts = {
        "tiny": param_count(load_architecture("tiny")),
        "160m": param_count(XLSTMLargeConfig(hidden_size=768, num_hidden_layers=12, **published)),
        "1.3b": param_count(XLSTMLargeConfig(hidden_size=2048, num_hidden_layers=24, **published)),
    }
    assert counts == roofline.PARAMETERS


@pytest.mark.slow
def test_the_tables_call_themselves_a_prediction_and_name_every_chip_and_kernel():
    process = subprocess.run(
        [sys.executable, "-m", "tools.roofline"], capture_output=True, text=True, check=True
    )
    assert process.stdout.startswith("Prediction, not measured")
    for chip in roofline.BANDWIDTH_GB_S:
        assert f"| {chip} |" in process.stdout
    bound = [kernel.name for kernel in KERNELS.values() if kernel.bytes_per_element]
    assert all(f"| `{name}` |" in process.stdout for name in bound)
    widths = {line.count("|") for line in process.stdout.splitlines() if line.startswith("|")}
    assert len(widths) == 3
    for name in ("mlstm_out", "mlstm_bwd_scores", "slstm_forward", "slstm_backward"):
        assert f"| `{name}` |" in process.stdout
