"""What follows from a record for a run."""

from functools import partial
from pathlib import Path

import pytest

from mlxhog.base.machine import Machine
from mlxhog.base.verdicts import Verdicts
from mlxhog.base.workers import BACKENDS
from mlxhog.doctor import litmus
from mlxhog.doctor.litmus import Accessor, Case, Litmus
from mlxhog.doctor.record import conclude
from tests.base.test_verdicts import adds, kernel, reads

# -- what doctor says `auto` will do is what a run does with the same record -----------------------


LINUX = Machine("linux", "x86_64", 2, 8 << 30, "", frozenset({"mlx", "torch"}))
MAC = Machine("macos", "arm64", 10, 8 << 30, "Apple M4 Pro", frozenset({"mlx", "torch"}))
FAST_GPU = {"mlx:gpu": 100_000.0, "mlx:cpu": 1_000.0, "torch:cpu": 1_000.0}


def record(**parts):
    empty = {"litmus": [], "reads": [], "kernels": [], "tokens_per_s": {}}
    return Verdicts(Path("record.json"), None, empty | parts)


def test_without_a_gpu_the_cpu_adds_every_step():
    verdict = conclude(record(litmus=adds("native", "native")), LINUX)
    assert verdict["gpu_write"]["auto"] == "cpu"
    assert verdict["gpu_write_metal"] == {}
    assert verdict["workers"]["auto"] == "mlx:cpu,torch:cpu"
    assert set(verdict["read_live"]) == {"torch:cpu"}


def test_cpu_workers_in_the_mix_leave_every_step_to_the_cpu():
    verdict = conclude(record(litmus=adds("metal:mlx", "metal:mlx", "threads")), MAC)
    assert verdict["workers"]["auto"] == "mlx:gpu,mlx:cpu,mlx:cpu"
    assert verdict["gpu_write"]["auto"] == "cpu"
    assert "CPU workers" in verdict["gpu_write"]["why"]


def test_a_gpu_that_runs_alone_and_lost_nothing_writes():
    rows = adds("metal:mlx", "metal:mlx", "threads")
    good = record(litmus=rows, kernels=[kernel("mlx")], tokens_per_s=FAST_GPU)
    verdict = conclude(good, MAC)
    assert verdict["workers"]["auto"] == "mlx:gpu"
    assert "mlx:cpu left out" in verdict["workers"]["why"]
    assert verdict["gpu_write"]["auto"] == "metal"
    assert verdict["gpu_write_metal"]["mlx:gpu"]["ok"]
    assert not verdict["gpu_write_metal"]["torch:mps"]["ok"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"litmus": adds("metal:mlx", "metal:mlx", "threads", lost=3)}, "lost 3 of 1,000"),
        ({"kernels": [kernel("mlx", ok=False)]}, "differ from reference"),
        ({"kernels": []}, "ran no kernel on mlx"),
    ],
)
def test_a_gpu_that_loses_or_computes_wrongly_does_not_write(parts, message):
    rows = adds("metal:mlx", "metal:mlx", "threads")
    good = {"litmus": rows, "kernels": [kernel("mlx")], "tokens_per_s": FAST_GPU}
    verdict = conclude(record(**{**good, **parts}), MAC)
    assert verdict["gpu_write"]["auto"] == "cpu"
    assert message in verdict["gpu_write"]["why"]


def test_auto_kernels_are_reported_for_every_backend():
    speeds = {"tokens_per_s": FAST_GPU, "tokens_per_s_metal": {"mlx:gpu": 150_000.0}}
    lines = conclude(record(kernels=[kernel("mlx")], **speeds), MAC)["kernels"]
    assert {name: each["auto"] for name, each in lines.items()} == {
        "mlx:gpu": "metal",
        "mlx:cpu": "native",
        "torch:mps": "reference",
        "torch:cpu": "native",
    }
    assert "150,000 tokens/s with the Metal kernels" in lines["mlx:gpu"]["why"]
    assert "ran no kernel on mps" in lines["torch:mps"]["why"]
    assert set(conclude(record(), LINUX)["kernels"]) == {"mlx:cpu", "torch:cpu"}


def test_live_reads_are_as_the_record_permits_them():
    verdict = conclude(record(reads=[reads("torch:cpu"), reads("mlx:gpu", torn=1)]), MAC)
    assert verdict["read_live"]["torch:cpu"]["ok"]
    assert not verdict["read_live"]["mlx:gpu"]["ok"]


def test_a_machine_without_a_framework_has_no_workers():
    bare = Machine("linux", "x86_64", 2, 8 << 30, "", frozenset())
    verdict = conclude(record(), bare)
    assert verdict["workers"]["auto"] == ""
    assert "pip install" in verdict["workers"]["why"]
    assert verdict["gpu_write"]["auto"] == "cpu"


def test_every_backend_that_can_run_has_a_verdict():
    verdict = conclude(record(), MAC)
    assert set(verdict["gpu_write_metal"]) | set(verdict["read_live"]) == set(BACKENDS) - {
        "mlx:cpu"
    }


def test_rows_as_on_a_mac_are_what_a_run_looks_for():
    """The rows come from the litmus tests; only the name says that the writer is a GPU."""
    metal = Accessor("metal:mlx", partial(litmus.metal, name="emulated:mlx"))
    pair = Litmus(0.01)
    try:
        rows = [
            pair.run(Case((metal, metal), name, where, "cas"))
            for name in ("dense", "rows")
            for where in ("threads", "processes")
        ]
    finally:
        pair.close()
    verdicts = record(litmus=rows, kernels=[kernel("mlx")], tokens_per_s=FAST_GPU)
    for backends in (["mlx:gpu"], ["mlx:gpu", "mlx:gpu"]):
        verdict = verdicts.gpu_write(backends)
        assert verdict.ok, verdict.reason
    assert conclude(verdicts, MAC)["gpu_write"]["auto"] == "metal"
