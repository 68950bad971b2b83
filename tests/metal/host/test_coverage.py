"""All Metal source of the project runs under the shim, counted."""

import pytest

from mlxhog.metal.host.engine import CONSUMERS, HostEngine
from tests.metal.compiled import compile_all
from tools import coverage


@pytest.mark.slow
def test_every_kernel_instance_runs_as_both_consumers_would_and_calls_every_function(
    shim_cache, capsys
):
    compile_all({name: HostEngine(name, cache=shim_cache) for name in CONSUMERS})
    result = coverage.measured(shim_cache)
    with capsys.disabled():
        print(f"\nMetal source under the shim: {result}")
    assert not result.missing
