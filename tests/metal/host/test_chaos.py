"""Chaos makes races happen: plain adds lose, atomic adds do not, and a seed repeats everything."""

import numpy as np
import pytest

from tests.metal.host import probes
from tests.metal.host.probes import count

N = 65_536


def lost(engine, kernel=probes.PLAIN_COUNT):
    shared = np.zeros(8, np.float32)
    engine.run(count(kernel, shared, N))
    return N - int(shared.sum())


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 3, 2**31])
def test_atomic_adds_lose_nothing_under_chaos(host_engine, seed, threads):
    assert lost(host_engine(chaos=seed, threads=threads), probes.ATOMIC_COUNT) == 0


def test_plain_adds_lose_and_a_seed_repeats_a_run_of_launches_on_one_os_thread(host_engine):
    first, second, other = (host_engine(chaos=seed, threads=1) for seed in (3, 3, 4))
    runs = [[lost(engine) for _ in range(3)] for engine in (first, second, other)]
    assert min(runs[0]) > N // 10
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert len(set(runs[0])) == 3  # launches of one engine differ from each other


@pytest.mark.slow
def test_both_ways_to_switch_fibers_agree(host_engine):
    portable = host_engine(chaos=3, threads=1, flags=("-DMLXHOG_UCONTEXT",))
    assert lost(host_engine(chaos=3, threads=1)) == lost(portable)
