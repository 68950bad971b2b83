"""What follows from a record for a run: what doctor says is what a run does with it."""

from pathlib import Path

from mlxhog.base.machine import Machine
from mlxhog.base.verdicts import Verdicts
from mlxhog.base.workers import BACKENDS
from mlxhog.doctor.record import conclude
from tests.base.test_verdicts import adds, kernel, reads
from tests.doctor.test_checks import MAC
from tests.pairs import each_of

LINUX = Machine("linux", "x86_64", 2, 8 << 30, "", frozenset({"mlx", "torch"}))
BARE = Machine("linux", "x86_64", 2, 8 << 30, "", frozenset())
FAST_GPU = {"mlx:gpu": 100_000.0, "mlx:cpu": 1_000.0, "torch:cpu": 1_000.0}
METAL = {"litmus": adds("metal:mlx", "metal:mlx")}
GOOD = {**METAL, "kernels": [kernel("mlx")], "tokens_per_s": FAST_GPU}


def record(**parts):
    empty = {"litmus": [], "reads": [], "kernels": [], "tokens_per_s": {}}
    return Verdicts(Path("record.json"), None, empty | parts)


@each_of(
    ("machine", "parts", "workers", "gpu_write", "why"),
    [
        (LINUX, {"litmus": adds("native", "native")}, "mlx:cpu,torch:cpu", "cpu", ""),
        (MAC, METAL, "mlx:gpu,mlx:cpu,mlx:cpu", "cpu", "CPU workers"),
        (MAC, GOOD, "mlx:gpu", "metal", ""),
        (MAC, GOOD | {"kernels": []}, "mlx:gpu", "cpu", "ran no kernel on mlx"),
        (BARE, {}, "", "cpu", ""),
    ],
)  # fmt: skip
def test_a_record_decides_workers_and_who_writes(machine, parts, workers, gpu_write, why):
    verdict = conclude(record(**parts), machine)
    assert verdict["workers"]["auto"] == workers
    assert verdict["gpu_write"]["auto"] == gpu_write
    assert why in verdict["gpu_write"]["why"]
    assert ("pip install" in verdict["workers"]["why"]) == (machine is BARE)


def test_every_backend_has_a_verdict_with_its_reason():
    fast = {**GOOD, "tokens_per_s_metal": {"mlx:gpu": 150_000.0}}
    verdict = conclude(record(**fast, reads=[reads("torch:cpu")]), MAC)
    assert {name: each["auto"] for name, each in verdict["kernels"].items()} == {
        "mlx:gpu": "metal", "mlx:cpu": "native", "torch:mps": "reference", "torch:cpu": "native",
    }  # fmt: skip
    assert "150,000 tokens/s with the Metal kernels" in verdict["kernels"]["mlx:gpu"]["why"]
    assert "mlx:cpu left out" in verdict["workers"]["why"]
    for name, expected in (
        ("gpu_write_metal", {"mlx:gpu": True, "torch:mps": False}),
        ("read_live", {"mlx:gpu": False, "torch:cpu": True}),
    ):
        assert {backend: each["ok"] for backend, each in verdict[name].items()} == expected
    linux = conclude(record(), LINUX)
    assert (linux["gpu_write_metal"], set(linux["read_live"])) == ({}, {"torch:cpu"})
    assert set(linux["kernels"]) == {name for name in BACKENDS if name.endswith(":cpu")}
