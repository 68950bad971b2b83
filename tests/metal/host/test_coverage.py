"""All Metal source of the project runs under the shim, counted."""

import numpy as np
import pytest

from mlxhog.metal.host.engine import CONSUMERS, HostEngine
from tests.metal.compiled import compile_all
from tests.metal.host import probes
from tests.metal.host.probes import on
from tools import coverage


@pytest.mark.slow
def test_every_kernel_instance_and_every_function_runs_as_both_consumers_would(shim_cache, capsys):
    compile_all(
        {name: HostEngine(name, cache=shim_cache, flags=coverage.FLAGS) for name in CONSUMERS}
    )
    result = coverage.measured(shim_cache)
    with capsys.disabled():
        print(f"\nMetal source under the shim: {result}")
    assert not result.missing


@pytest.mark.slow
def test_a_function_that_did_not_run_is_missing(shim_cache, consumer):
    engine = HostEngine(consumer, cache=shim_cache, flags=coverage.FLAGS)
    engine.run(on(probes.UNWRITTEN, np.ones(64, np.float32)))
    ran = coverage.functions_ran(engine.built(probes.UNWRITTEN))
    assert "mlxhog::unwritten" in ran
    assert "mlxhog::divergent" not in ran
    defined = coverage.defined([probes.KERNELS / "meeting.h"])
    assert {"mlxhog::unwritten", "mlxhog::divergent"} < defined


def test_what_is_missing_is_named():
    result = coverage.Coverage(
        ran=frozenset({("mlx", "a", "")}),
        all=frozenset({("mlx", "a", ""), ("mps", "a", "half")}),
        functions_ran=frozenset({"mlxhog::f", "main"}),
        functions=frozenset({"mlxhog::f", "mlxhog::g"}),
    )
    assert str(result).splitlines() == [
        "1 of 2 kernels ran (consumer x kernel x instance)",
        "1 of 2 functions ran",
        "did not run: mlxhog::g",
        "did not run: mps a half",
    ]
