"""Which workers run, where, and with how many threads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.base.capabilities import Capability
from mlxhog.base.machine import Machine
from mlxhog.base.workers import joining_workers, resolve_workers
from mlxhog.errors import ConfigError, EnvironmentLacks
from tests.pairs import each_of

BOTH = frozenset({"mlx", "torch"})


def linux(cores=2, frameworks=BOTH):
    return Machine("linux", "x86_64", cores, 8 << 30, "", frameworks)


def mac(chip="Apple M4 Pro", cores=10):
    return Machine("macos", "arm64", cores, 8 << 30, chip, BOTH)


def listed(choice):
    return [f"{worker.backend} {worker.threads}" for worker in choice.workers]


def backends(choice):
    return [worker.backend for worker in choice.workers]


@each_of(
    ("chip", "cores", "gpu", "cpu"),
    [
        ("Apple M1", 4, 1, 1),
        ("Apple M4 Pro", 10, 1, 2),
        ("Apple M2 Ultra", 16, 2, 4),
        ("Apple A18 Pro", 2, 1, 1),
        ("Apple M5 Pro", 2, 1, 1),  # a virtual machine with two of its cores
        ("Apple M1 (Virtual)", 1, 1, 0),
    ],
)
def test_a_mac_has_workers_on_gpu_and_performance_cores_and_mps_if_it_gains(chip, cores, gpu, cpu):
    alone = resolve_workers("auto", machine=mac(chip, cores))
    assert backends(alone) == ["mlx:gpu"] * gpu + ["mlx:cpu"] * cpu
    for gains, words in ((True, "torch:mps beside mlx:gpu"), (False, "mlx:gpu without torch:mps")):
        choice = resolve_workers("auto", machine=mac(chip, cores), pair=Capability(gains, "why"))
        if cores == 1:
            continue
        assert choice.notes == (f"workers auto: {words}: why",)
        n_cpu = min(cpu, cores - gpu - gains)
        expected = ["mlx:gpu"] * gpu + ["torch:mps"] * gains + ["mlx:cpu"] * n_cpu
        assert backends(choice) == expected


@each_of(
    ("workers", "machine", "threads", "expected"),
    [
        ("auto", linux(), None, ["mlx:cpu 1", "torch:cpu 1"]),
        ("3", linux(8), None, ["torch:cpu 3", "torch:cpu 3", "torch:cpu 2"]),
        ("auto", linux(16), None, ["torch:cpu 4"] * 4),  # with 4 threads MLX had .8 of its speed
        ("3", mac(), None, ["mlx:gpu 2", "mlx:cpu 4", "mlx:cpu 4"]),
        ("torch:cpu*2", linux(4), 2, ["torch:cpu 2", "torch:cpu 2"]),
        ("mlx:gpu", mac(), None, ["mlx:gpu 10"]),
        ("mlx:gpu", mac(), 1, ["mlx:gpu 1"]),
        ("mlx:gpu,torch:cpu*2", mac(), 3, ["mlx:gpu 3", "torch:cpu 3", "torch:cpu 3"]),
        ("mlx:gpu,torch:cpu*2", mac(), 4, ["mlx:gpu 2", "torch:cpu 4", "torch:cpu 4"]),
        ("mlx:gpu,mlx:cpu*3", mac(cores=4), None, ["mlx:gpu 1", *["mlx:cpu 1"] * 3]),
        ("mlx:gpu*2,mlx:cpu*2", mac(cores=5), None, [*["mlx:gpu 1"] * 2, *["mlx:cpu 1"] * 2]),
        ("mlx:gpu,mlx:cpu", mac(cores=1), None, ["mlx:gpu 1", "mlx:cpu 1"]),
    ],
)
def test_workers_share_cores_and_gpu_workers_have_what_is_left(workers, machine, threads, expected):
    assert listed(resolve_workers(workers, threads, machine=machine)) == expected


@given(
    st.lists(st.sampled_from(["mlx:cpu", "torch:cpu", "mlx:gpu"]), min_size=1, max_size=16),
    st.integers(1, 64),
)
def test_workers_together_never_oversubscribe_the_cores(names, cores):
    choice = resolve_workers(",".join(names), machine=mac(cores=cores))
    assert all(worker.threads >= 1 for worker in choice.workers)
    assert sum(worker.threads for worker in choice.workers) <= max(cores, len(names))


def test_auto_uses_what_is_there_and_says_what_it_leaves_out():
    serial = resolve_workers("auto", machine=linux(4), serial=True)
    assert listed(serial) == ["torch:cpu 4"]
    choice = resolve_workers("auto", machine=linux(2, frozenset({"torch"})))
    assert listed(choice) == ["torch:cpu 1"] * 2
    assert choice.notes == ("mlx:cpu needs mlx: python -m pip install 'mlx[cpu]'",)
    speeds = {"mlx:gpu": 100_000.0, "mlx:cpu": 4_000.0}
    choice = resolve_workers("auto", machine=mac(), tokens_per_s=speeds)
    assert backends(choice) == ["mlx:gpu"]
    assert "mlx:cpu left out: 4.0% of the fastest" in choice.notes[0]
    asked = resolve_workers("3", machine=mac(), tokens_per_s=speeds)
    assert backends(asked) == ["mlx:gpu", "mlx:cpu", "mlx:cpu"]


@each_of(
    ("workers", "machine", "how", "error", "message"),
    [
        ("auto", linux(2, frozenset()), {}, EnvironmentLacks, "pip install torch"),
        ("torch:cpu", linux(2, frozenset({"mlx"})), {}, EnvironmentLacks, "pip install torch"),
        ("mlx:gpu,torch:mps", linux(), {}, EnvironmentLacks,
         "mlx:gpu needs macOS on Apple silicon.*mlx:cpu here; torch:mps needs .*torch:cpu"),
        ("torch:mps", Machine("macos", "x86_64", 4, 8 << 30, "Intel", BOTH), {}, EnvironmentLacks,
         "torch:mps needs macOS"),
        ("64", linux(64), {"max_workers": 16}, ConfigError,
         "64, the arena has 16 slots; raise max_workers"),
        ("torch:cpu*2", linux(), {"threads": 2}, ConfigError,
         "need 4 cores and this machine has 2"),
        ("2", linux(4), {"serial": True}, ConfigError, "serial runs 1 worker"),
        *((text, linux(32), {}, ConfigError, message) for text, message in (
            ("torch:cup", "did you mean 'torch:cpu'"), ("", "no backend ''"),
            ("torch:cpu*0", "needs a number"), ("torch:cpu*", "needs a number"),
            ("-2", "at least 1"), ("torch:cpu*4096,mlx:cpu", "4096 slots"),
        )),
    ],
)  # fmt: skip
def test_workers_that_cannot_run_are_refused_with_a_way_out(workers, machine, how, error, message):
    with pytest.raises(error, match=message):
        resolve_workers(workers, machine=machine, **how)


def test_no_worker_joins_with_more_threads_than_there_are_cores():
    with pytest.raises(ConfigError, match="threads is 1000000000, so 1 .* this machine has 8; use"):
        joining_workers("1", 10**9, machine=linux(8), present=2, free=2)
