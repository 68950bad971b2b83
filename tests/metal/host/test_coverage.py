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


def test_what_is_missing_is_named():
    text = "void f() {} void g() { f(); } void h() { h(); } [[kernel]] void k() { g(); }"
    result = coverage.Coverage(
        ran=frozenset({("mlx", "a", "")}),
        all=frozenset({("mlx", "a", ""), ("mps", "a", "half")}),
        called=coverage.called(text),
        functions=frozenset("fgh"),
    )
    assert str(result).splitlines() == [
        "1 of 2 kernels ran (consumer x kernel x instance)",
        "2 of 3 functions are called",
        "missing: h",
        "missing: mps a half",
    ]
