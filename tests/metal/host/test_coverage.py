"""All Metal source of the project runs under the shim, counted."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlxhog.metal.registry import instances
from tools import coverage


@pytest.mark.slow
def test_every_kernel_instance_runs_and_calls_every_function(shim, shim_cache, capsys):
    first, *others = instances()
    shim.built(*first)  # with the runtime, which all share
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda one: shim.built(*one), others))
    missing, summary = coverage.missing(shim_cache)
    with capsys.disabled():
        print(f"\nMetal source under the shim: {summary}")
    assert not missing
